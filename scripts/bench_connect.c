// Heart beats for the benchmark, each on a new connection, so many under way at a time:
//   bench_connect PORT CERTIFICATE KEY AT_A_TIME SECONDS
// prints how many were answered a second, and the share of a core that this took.
//
// It is BoringSSL's, whose handshake takes two thirds of the processor time that OpenSSL 3's takes, ab's too.
// What the client leaves of the processors is what a server that uses several can have.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char REQUEST[] =
    "GET /api/heart_beat?user_id=alice HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
static const char ANSWER[] = "HTTP/1.1 200 ";
enum { PATIENCE_MILLISECONDS = 10000 };

struct connection {
  SSL *ssl;
  int descriptor, sent, answered;
  unsigned events;
};

static SSL_CTX *context;
static struct sockaddr_in address;
static int queue;

static void fail(const char *what) {
  fprintf(stderr, "bench_connect: %s\n", what);
  ERR_print_errors_fp(stderr);
  exit(1);
}

static double seconds(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return time.tv_sec + time.tv_nsec / 1e9;
}

static enum ssl_verify_result_t accept_any(SSL *ssl, uint8_t *alert) {
  (void)ssl, (void)alert;
  return ssl_verify_ok;
}

// Without X.509: the certificate is sent as it is in the file, and the server's is not looked at.
static void load(const char *certificate_path, const char *key_path) {
  char *name, *header;
  unsigned char *data;
  long length;
  FILE *certificate_file = fopen(certificate_path, "r"), *key_file = fopen(key_path, "r");
  if (!certificate_file || !key_file || !PEM_read(certificate_file, &name, &header, &data, &length))
    fail("no certificate or key");
  CRYPTO_BUFFER *certificate = CRYPTO_BUFFER_new(data, length, NULL);
  EVP_PKEY *key = PEM_read_PrivateKey(key_file, NULL, NULL, NULL);
  context = SSL_CTX_new(TLS_with_buffers_method());
  SSL_CTX_set_custom_verify(context, SSL_VERIFY_PEER, accept_any);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  if (!key || !SSL_CTX_set_chain_and_key(context, &certificate, 1, key, NULL))
    fail("the key is not the certificate's");
}

static void wait_for(struct connection *connection, int operation, unsigned events) {
  struct epoll_event event = {.events = events, .data.ptr = connection};
  connection->events = events;
  if (epoll_ctl(queue, operation, connection->descriptor, &event)) fail("epoll_ctl");
}

static void start(struct connection *connection) {
  int on = 1;
  connection->descriptor = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (connection->descriptor < 0) fail("socket");
  setsockopt(connection->descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  // Under way; an error shows at the first write.
  connect(connection->descriptor, (struct sockaddr *)&address, sizeof address);
  connection->ssl = SSL_new(context);
  connection->sent = connection->answered = 0;
  SSL_set_fd(connection->ssl, connection->descriptor);
  SSL_set_connect_state(connection->ssl);
  wait_for(connection, EPOLL_CTL_ADD, EPOLLOUT);
}

// Goes on as far as it can; returns whether the server has answered and ended the connection.
static int go_on(struct connection *connection) {
  char buffer[4096];
  int result = 0;
  if (!connection->sent)
    connection->sent = (result = SSL_write(connection->ssl, REQUEST, sizeof REQUEST - 1)) > 0;
  while (connection->sent && (result = SSL_read(connection->ssl, buffer, sizeof buffer)) > 0) {
    if (!connection->answered &&
        (result < (int)sizeof ANSWER || memcmp(buffer, ANSWER, sizeof ANSWER - 1)))
      fail("a request was not answered 200");
    connection->answered = 1;
  }
  int error = SSL_get_error(connection->ssl, result);
  if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) {
    unsigned events = error == SSL_ERROR_WANT_READ ? EPOLLIN : EPOLLOUT;
    if (events != connection->events) wait_for(connection, EPOLL_CTL_MOD, events);
    return 0;
  }
  if (!connection->answered) fail("a connection ended before its answer");
  SSL_free(connection->ssl);
  close(connection->descriptor);
  return 1;
}

int main(int count, char **arguments) {
  if (count != 6) fail("usage: bench_connect PORT CERTIFICATE KEY AT_A_TIME SECONDS");
  address = (struct sockaddr_in){.sin_family = AF_INET,
                                 .sin_port = htons(atoi(arguments[1])),
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  load(arguments[2], arguments[3]);
  queue = epoll_create1(0);
  int under_way = atoi(arguments[4]);
  struct connection *connections = calloc(under_way, sizeof *connections);
  double started = seconds(CLOCK_MONOTONIC), end = started + atof(arguments[5]);
  double cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
  for (int number = 0; number < under_way; number++) start(&connections[number]);
  long answered = 0;
  while (under_way) {
    struct epoll_event events[64];
    int ready = epoll_wait(queue, events, 64, PATIENCE_MILLISECONDS);
    if (ready <= 0) fail("no answer");
    for (int number = 0; number < ready; number++) {
      if (!go_on(events[number].data.ptr)) continue;
      answered++;
      if (seconds(CLOCK_MONOTONIC) < end) start(events[number].data.ptr);
      else under_way--;
    }
  }
  double taken = seconds(CLOCK_MONOTONIC) - started;
  printf("%f %f\n", answered / taken, (seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu) / taken);
}
