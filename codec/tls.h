/* OpenSSL, from 1.1.1 on: what its versions have not in common. */
#ifndef OFFHOOK_TLS_H
#define OFFHOOK_TLS_H

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

/* Since 3.0 a connection that ends without a goodbye is an error with a name, unless told not to. */
#ifdef SSL_R_UNEXPECTED_EOF_WHILE_READING
#define IS_END(code) (ERR_GET_REASON(code) == SSL_R_UNEXPECTED_EOF_WHILE_READING)
#else
#define IS_END(code) 0
#define SSL_OP_IGNORE_UNEXPECTED_EOF 0
#endif

/* Whether the library that runs is the one whose headers this was built with, but for repairs. */
static int is_same_openssl(void) {
    return OpenSSL_version_num() >> 28 == (unsigned long)OPENSSL_VERSION_NUMBER >> 28;
}

#endif
