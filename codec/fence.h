/* Nobody may touch what lies between a buffer's end and its capacity. The address sanitizer cannot
   know that by itself, so a build with it is told; in any other build these are nothing. */

#include <stddef.h>

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ADDRESS_SANITIZER 1
#endif
#endif

#ifdef WITH_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
static inline void fence(const void *data, size_t usable, size_t capacity) {
    __asan_unpoison_memory_region(data, usable);
    __asan_poison_memory_region((const char *)data + usable, capacity - usable);
}
#else
static inline void fence(const void *data, size_t usable, size_t capacity) {
    (void)data, (void)usable, (void)capacity;
}
#endif
