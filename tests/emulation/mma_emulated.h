/* mma_emulated.h - the instructions of kernels/mma.cuh, by the lanes of a warp that meet. Fragments: there. */

struct emulated_mma {
    float *c;
    const uint32_t *a, *b;
};

static void
emulated_multiply(void *const *all, unsigned)
{
    float a[16][16], b[16][8];
    for (int lane = 0; lane < WARP_LANES; lane++) {
        const emulated_mma *one = static_cast<const emulated_mma *>(all[lane]);
        int g = lane / 4, t = lane % 4;
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < 4; i++) {
                a[g + i % 2 * 8][2 * t + i / 2 * 8 + half] = f32_of((uint16_t)(one->a[i] >> 16 * half));
            }
            for (int i = 0; i < 2; i++) {
                b[2 * t + i * 8 + half][g] = f32_of((uint16_t)(one->b[i] >> 16 * half));
            }
        }
    }
    for (int lane = 0; lane < WARP_LANES; lane++) {
        const emulated_mma *one = static_cast<const emulated_mma *>(all[lane]);
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            for (int k = 0; k < 16; k++) {
                one->c[i] = fmaf(a[row][k], b[k][column], one->c[i]);
            }
        }
    }
}

static inline void
mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    emulated_mma mine = {c, a, b};
    emulated_meet(ALL_LANES, emulated_multiply, &mine);
}

struct emulated_tiles {
    uint32_t *r;
    const uint16_t *row;
    bool transposed;
};

static void
emulated_load(void *const *all, unsigned)
{
    uint16_t tile[4][8][8];
    for (int lane = 0; lane < WARP_LANES; lane++) {
        memcpy(tile[lane / 8][lane % 8], static_cast<const emulated_tiles *>(all[lane])->row, 16);
    }
    for (int lane = 0; lane < WARP_LANES; lane++) {
        const emulated_tiles *one = static_cast<const emulated_tiles *>(all[lane]);
        int g = lane / 4, t = 2 * (lane % 4);
        for (int i = 0; i < 4; i++) {
            uint16_t low = one->transposed ? tile[i][t][g] : tile[i][g][t];
            uint16_t high = one->transposed ? tile[i][t + 1][g] : tile[i][g][t + 1];
            one->r[i] = (uint32_t)low | (uint32_t)high << 16;
        }
    }
}

static inline void
load_matrix(uint32_t r[4], const void *row)
{
    assert((uintptr_t)row % 16 == 0);
    emulated_tiles mine = {r, static_cast<const uint16_t *>(row), false};
    emulated_meet(ALL_LANES, emulated_load, &mine);
}

static inline void
load_matrix_transposed(uint32_t r[4], const void *row)
{
    assert((uintptr_t)row % 16 == 0);
    emulated_tiles mine = {r, static_cast<const uint16_t *>(row), true};
    emulated_meet(ALL_LANES, emulated_load, &mine);
}

static inline void
copy_16(void *shared, const void *global, int bytes)
{
    assert((uintptr_t)shared % 16 == 0 && (uintptr_t)global % 16 == 0);
    emulated_copy(shared, global, bytes, 16);
}

static inline void
copy_4(float *shared, const float *global, bool copied)
{
    emulated_copy(shared, global, copied ? 4 : 0, 4);
}

static inline void
copy_commit()
{
    emulated_copy_commit();
}

template <int left>
static inline void
copy_wait()
{
    emulated_copy_wait(left);
}
