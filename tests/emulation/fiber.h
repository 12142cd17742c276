/* fiber.h - a second stack to run on: how the threads of an emulated block take turns.
 *
 * fiber_switch(from, to) goes on where `to` left off and returns when somebody switches back. On x86-64 that
 * is six registers and the stack pointer; elsewhere ucontext. AddressSanitizer is told. */
#ifndef FIBER_H
#define FIBER_H

#include <stddef.h>
#include <stdint.h>

#if defined(__SANITIZE_ADDRESS__)
#define FIBER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FIBER_ASAN 1
#endif
#endif
#ifdef FIBER_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

struct fiber {
    char *stack; /* NULL: the caller's own */
    size_t size;
    void *fake; /* ASan's */
#if defined(__x86_64__)
    void *sp;
#else
    ucontext_t context;
#endif
};

#if defined(__x86_64__)
extern "C" void fiber_swap(void **save, void *load);
#endif

/* A fiber that starts in entry, which never returns: its last act is a switch. */
static inline void
fiber_start(fiber *f, char *stack, size_t size, void (*entry)())
{
    f->stack = stack;
    f->size = size;
    f->fake = NULL;
#if defined(__x86_64__)
    uintptr_t *top = (uintptr_t *)(((uintptr_t)stack + size) / 16 * 16);
    *--top = 0; /* where entry would return to; the stack is as after a call */
    *--top = (uintptr_t)entry;
    for (int i = 0; i < 6; i++) {
        *--top = 0;
    }
    f->sp = top;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = stack;
    f->context.uc_stack.ss_size = size;
    f->context.uc_link = NULL;
    makecontext(&f->context, entry, 0);
#endif
}

/* The first thing on a fiber that has just begun, and what fiber_switch does when it comes back. */
static inline void
fiber_entered(fiber *self)
{
    (void)self;
#ifdef FIBER_ASAN
    __sanitizer_finish_switch_fiber(self->fake, NULL, NULL);
#endif
}

/* last: `from` will not be gone on with. */
static inline void
fiber_switch(fiber *from, fiber *to, bool last)
{
    (void)last;
#ifdef FIBER_ASAN
    __sanitizer_start_switch_fiber(last ? NULL : &from->fake, to->stack, to->size);
#endif
#if defined(__x86_64__)
    fiber_swap(&from->sp, to->sp);
#else
    swapcontext(&from->context, &to->context);
#endif
    fiber_entered(from);
}

#endif
