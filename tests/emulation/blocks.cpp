/* blocks.cpp - runs grids: see emulator.h. One launch at a time (emulated_unlock holds the lock). */
#include "emulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "fiber.h"

#ifdef FIBER_ASAN /* frames that nobody returned from have left their marks */
#include <sanitizer/asan_interface.h>
#define FORGET_STACKS() __asan_unpoison_memory_region(stack_of(0), (size_t)MAX_THREADS * STACK)
#else
#define FORGET_STACKS() (void)0
#endif

#if defined(__x86_64__)
asm(".text\n"
    ".globl fiber_swap\n"
    ".hidden fiber_swap\n"
    ".type fiber_swap, @function\n"
    "fiber_swap:\n"
    "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
    "    ret\n"
    ".size fiber_swap, .-fiber_swap\n");
#endif

emulated_place emulated_now;

namespace {

enum { MAX_THREADS = 1024, STACK = 1 << 18 };
enum class waits { nothing, warp, block, for_ever };

struct copy {
    void *to;
    const void *from;
    int bytes, room;
    unsigned group;
};

struct thread {
    fiber f;
    emulated_place place;
    waits state;
    /* at a meeting of the warp */
    unsigned mask;
    emulated_meeting meet;
    void *mine;
    std::vector<copy> copies; /* under way */
    unsigned group;           /* that the next copy belongs to */
};

using piece_memory = std::unique_ptr<void, void (*)(void *)>;
struct shared_piece {
    const void *key;
    piece_memory memory;
};

thread threads[MAX_THREADS];
unsigned count, running, live, at_barrier, predicates, answer;
std::vector<unsigned> ready;
std::vector<shared_piece> pieces;
size_t shared_used, dynamic_bytes;
fiber scheduler;
void (*body)(void *);
void *context;
char message[256];
uint64_t random_state;
bool shuffled;

unsigned
draw(unsigned n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)(random_state % n);
}

char *
stack_of(unsigned i)
{
    static char *stacks = NULL;
    if (stacks == NULL) {
        stacks = (char *)mmap(NULL, (size_t)MAX_THREADS * STACK, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    return stacks + (size_t)i * STACK;
}

void
open_barrier()
{
    if (at_barrier == 0 || at_barrier < live) {
        return;
    }
    for (unsigned i = 0; i < count; i++) {
        if (threads[i].state == waits::block) {
            threads[i].state = waits::nothing;
            ready.push_back(i);
        }
    }
    answer = predicates;
    at_barrier = predicates = 0;
}

void
yield()
{
    fiber_switch(&threads[running].f, &scheduler, false);
    emulated_now = threads[running].place;
}

void
run_thread()
{
    fiber_entered(&threads[running].f);
    emulated_now = threads[running].place;
    body(context);
    threads[running].state = waits::for_ever;
    live--;
    open_barrier(); /* threads that have returned are not waited for */
    fiber_switch(&threads[running].f, &scheduler, true);
}

/* All threads of one block, until they have returned; false: they wait for each other. */
bool
run_block(uint3 block, dim3 grid, dim3 size)
{
    ready.clear();
    pieces.clear();
    shared_used = dynamic_bytes;
    live = count;
    at_barrier = predicates = 0;
    for (unsigned i = 0; i < count; i++) {
        uint3 index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
        threads[i].place = {index, block, size, grid, i % WARP_LANES};
        threads[i].state = waits::nothing;
        threads[i].copies.clear();
        threads[i].group = 0;
        fiber_start(&threads[i].f, stack_of(i), STACK, run_thread);
        ready.push_back(count - 1 - i);
    }
    while (!ready.empty()) {
        if (shuffled) {
            std::swap(ready[draw((unsigned)ready.size())], ready.back());
        }
        running = ready.back();
        ready.pop_back();
        fiber_switch(&scheduler, &threads[running].f, false);
    }
    return live == 0;
}

const char *
refuse(const char *name, const char *why)
{
    snprintf(message, sizeof message, "%s: %s", name, why);
    return message;
}

/* Where the threads of a block that has come to a halt stand. */
const char *
describe_deadlock(const char *name, uint3 block)
{
    unsigned warp = 0, first = count;
    for (unsigned i = 0; i < count; i++) {
        if (threads[i].state == waits::warp) {
            warp++;
            first = std::min(first, i);
        }
    }
    snprintf(message, sizeof message, "%s: block (%u, %u, %u) of %u threads: %u have returned, %u wait at "
             "the block's barrier, %u at one of their warp (the first: thread %u, mask %08x)", name, block.x,
             block.y, block.z, count, count - live, at_barrier, warp, first,
             first < count ? threads[first].mask : 0);
    return message;
}

} // namespace

unsigned
emulated_barrier(bool predicate)
{
    thread &me = threads[running];
    me.state = waits::block;
    at_barrier++;
    predicates += predicate;
    open_barrier();
    yield();
    return answer;
}

void
emulated_meet(unsigned mask, emulated_meeting meet, void *mine)
{
    thread &me = threads[running];
    unsigned first = running - me.place.lane;
    me.mask = mask;
    me.meet = meet;
    me.mine = mine;
    me.state = waits::warp;
    void *all[WARP_LANES] = {};
    bool complete = mask >> me.place.lane & 1;
    for (unsigned lane = 0; complete && lane < WARP_LANES; lane++) {
        if (mask >> lane & 1) {
            thread *other = first + lane < count ? &threads[first + lane] : NULL;
            complete = other != NULL && other->state == waits::warp && other->mask == mask &&
                       other->meet == meet;
            all[lane] = other != NULL ? other->mine : NULL;
        }
    }
    if (complete) {
        meet(all, mask);
        for (unsigned lane = 0; lane < WARP_LANES; lane++) {
            if (mask >> lane & 1) {
                threads[first + lane].state = waits::nothing;
                ready.push_back(first + lane);
            }
        }
    }
    yield();
}

void
emulated_copy(void *to, const void *from, int bytes, int room)
{
    threads[running].copies.push_back({to, from, bytes, room, threads[running].group});
}

void
emulated_copy_commit()
{
    threads[running].group++;
}

void
emulated_copy_wait(unsigned left)
{
    thread &me = threads[running];
    size_t kept = 0;
    for (const copy &one : me.copies) {
        if (one.group + left < me.group) {
            memset(one.to, 0, (size_t)one.room);
            memcpy(one.to, one.from, (size_t)one.bytes);
        } else {
            me.copies[kept++] = one;
        }
    }
    me.copies.resize(kept);
}

void *
emulated_shared(const void *key, size_t bytes)
{
    for (const shared_piece &piece : pieces) {
        if (piece.key == key) {
            return piece.memory.get();
        }
    }
    void *p = NULL; /* its end is the end of an allocation: ASan looks there */
    if (posix_memalign(&p, 128, bytes > 0 ? bytes : 1) != 0) {
        return NULL;
    }
    memset(p, 0xff, bytes);
    pieces.push_back({key, piece_memory(p, free)});
    shared_used += key != &dynamic_bytes ? bytes : 0;
    return p;
}

void *
emulated_dynamic_shared()
{
    return emulated_shared(&dynamic_bytes, dynamic_bytes);
}

const char *
emulated_run(int device, const char *name, dim3 grid, dim3 block, emulated_dynamic shared,
             void (*run)(void *), void *with)
{
    size_t size = (size_t)block.x * block.y * block.z, blocks = (size_t)grid.x * grid.y * grid.z;
    if (size == 0 || size > MAX_THREADS || block.z > 64) {
        return refuse(name, "a block has 1 to 1,024 threads, at most 64 of them along z");
    }
    if (blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
        return refuse(name, "a grid has at least one block, at most 65,535 along y and z");
    }
    count = (unsigned)size;
    body = run;
    context = with;
    dynamic_bytes = shared.bytes;
    shuffled = device > 0;
    random_state = 0x9E3779B97F4A7C15u * (uint64_t)(device + 1);
    std::vector<size_t> order(blocks);
    for (size_t i = 0; i < blocks; i++) {
        order[i] = i;
        if (shuffled) {
            std::swap(order[i], order[draw((unsigned)i + 1)]);
        }
    }
    for (size_t i : order) {
        uint3 at = {(unsigned)(i % grid.x), (unsigned)(i / grid.x % grid.y),
                    (unsigned)(i / grid.x / grid.y)};
        if (!run_block(at, grid, block)) {
            FORGET_STACKS();
            return describe_deadlock(name, at);
        }
        if (shared_used > SHARED_LIMIT) {
            return refuse(name, "more shared memory than an sm_80 has, 163 KiB");
        }
        if (shared_used > SHARED_UNASKED && shared.asked < shared.bytes) {
            return refuse(name, "more than 48 KiB of shared memory, for which nobody has asked");
        }
    }
    return NULL;
}
