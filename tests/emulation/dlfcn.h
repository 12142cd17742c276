/* dlfcn.h - opening a library, where the only one is the stand-in of cuBLASLt (cublaslt.cpp): tests only. */
#ifndef EMULATED_DLFCN_H
#define EMULATED_DLFCN_H

#define RTLD_LAZY 1
#define RTLD_NOLOAD 4
#define dlopen emulated_dlopen
#define dlsym emulated_dlsym
#define dlclose emulated_dlclose

/* NULL unless it is that library, and a test has switched it on. */
void *emulated_dlopen(const char *name, int how);
void *emulated_dlsym(void *library, const char *name);
int emulated_dlclose(void *library);

#endif
