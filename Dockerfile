# The server for a cluster: Python, PyYAML and kubectl, and nothing else of its own.
#
#   docker build -t sqlflow-playground:2.0.0 .
#
# k8s_templates/playground.yaml runs it with the TLS files in /opt/playground/key_store, where the server
# looks by itself, a writable /tmp, and everything else read-only.
FROM registry.k8s.io/kubectl:v1.36.2 AS kubectl

FROM python:3.13.11-slim-trixie
# The digests are those of the wheels for amd64 and arm64: no other file is installed, and nothing is built.
RUN printf 'PyYAML==6.0.3 %s %s\n' \
      --hash=sha256:0f29edc409a6392443abf94b9cf89ce99889a1dd5376d94316ae5145dfedd5d6 \
      --hash=sha256:ee2922902c45ae8ccada2c5b501ab86c36525b883eff4255313a253a3160861c >/tmp/requirements \
    && pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes \
      --requirement /tmp/requirements \
    && rm /tmp/requirements
COPY --from=kubectl /bin/kubectl /usr/local/bin/kubectl
WORKDIR /opt/playground
COPY k8s_templates k8s_templates
COPY playground.py .
RUN chmod -R a=rX .
# Nobody's in particular. A number, so that Kubernetes can see that it is not root's.
USER 65532:65532
ENV HOME=/tmp PYTHONUNBUFFERED=1
EXPOSE 50052
# Not through a shell: SIGTERM reaches the server.
ENTRYPOINT ["python", "playground.py"]
