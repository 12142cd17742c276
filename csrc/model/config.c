/* config.c - can this configuration be? One function, so that every later file may assume it.
 *
 * The upper bounds are far beyond any model; they keep every product of sizes within 64 bits.
 */
#include <math.h>

#include "internal.h"

enum { MAX_WIDTH = 1 << 24 };

static r1_code
between(const char *field, size_t value, size_t low, size_t high, r1_status *st)
{
    if (value < low || value > high) {
        return R1_FAIL(st, R1_EINVAL, "config: %s is %zu, must be between %zu and %zu", field,
                       value, low, high);
    }
    return R1_OK;
}

static r1_code
check_attention(const r1_config *c, r1_status *st)
{
    size_t rotary = config_rotary(c);
    if (config_mla(c)) {
        R1_TRY(between("kv_lora_rank", c->kv_lora, 1, MAX_WIDTH, st));
        R1_TRY(between("q_lora_rank", c->q_lora, 0, MAX_WIDTH, st));
        R1_TRY(between("qk_nope_head_dim", c->Dn, 1, R1_MAX_HEAD_DIM, st));
        R1_TRY(between("qk_rope_head_dim", c->Dr, 1, R1_MAX_HEAD_DIM, st));
        R1_TRY(between("v_head_dim", c->Dv, 1, R1_MAX_HEAD_DIM, st));
        if (c->qk_norm) {
            return R1_FAIL(st, R1_EINVAL, "config: MLA norms its latents; heads are not normed");
        }
    } else {
        R1_TRY(between("num_key_value_heads", c->Hkv, 1, c->H, st));
        R1_TRY(between("head_dim", c->D, 1, R1_MAX_HEAD_DIM, st));
        if (c->H % c->Hkv != 0) {
            return R1_FAIL(st, R1_EINVAL,
                           "config: num_attention_heads %zu is not a multiple of "
                           "num_key_value_heads %zu",
                           c->H, c->Hkv);
        }
    }
    if (rotary % 2 != 0) {
        return R1_FAIL(st, R1_EINVAL, "config: %s %zu is odd: rotary positions need pairs",
                       config_mla(c) ? "qk_rope_head_dim" : "head_dim", rotary);
    }
    if (config_dqk(c) > R1_MAX_HEAD_DIM) {
        return R1_FAIL(st, R1_EINVAL,
                       "config: qk_nope_head_dim + qk_rope_head_dim is %zu, at most %d is possible",
                       config_dqk(c), R1_MAX_HEAD_DIM);
    }
    return R1_OK;
}

static r1_code
check_moe(const r1_config *c, r1_status *st)
{
    R1_TRY(between("n_routed_experts", c->E, 1, R1_MAX_EXPERTS, st));
    R1_TRY(between("num_experts_per_tok", c->K, 1, R1_MAX_TOPK, st));
    R1_TRY(between("moe_intermediate_size", c->Fe, 1, MAX_WIDTH, st));
    R1_TRY(between("n_shared_experts", c->shared, 0, R1_MAX_EXPERTS, st));
    R1_TRY(between("n_group", c->groups, 1, c->E, st));
    if (c->K > c->E) {
        return R1_FAIL(st, R1_EINVAL, "config: num_experts_per_tok %zu exceeds n_routed_experts %zu",
                       c->K, c->E);
    }
    if (c->E % c->groups != 0) {
        return R1_FAIL(st, R1_EINVAL, "config: n_routed_experts %zu is not a multiple of n_group %zu",
                       c->E, c->groups);
    }
    if (c->top_groups == 0 || c->top_groups > c->groups) {
        return R1_FAIL(st, R1_EINVAL, "config: topk_group %zu must be between 1 and n_group %zu",
                       c->top_groups, c->groups);
    }
    if (c->K > c->top_groups * (c->E / c->groups)) {
        return R1_FAIL(st, R1_EINVAL,
                       "config: num_experts_per_tok %zu exceeds the %zu experts of topk_group %zu "
                       "groups",
                       c->K, c->top_groups * (c->E / c->groups), c->top_groups);
    }
    return R1_OK;
}

r1_code
r1_config_check(const r1_config *c, r1_status *st)
{
    R1_TRY(between("vocab_size", c->V, 1, INT32_MAX, st));
    R1_TRY(between("hidden_size", c->C, 1, MAX_WIDTH, st));
    R1_TRY(between("num_hidden_layers", c->L, 1, R1_MAX_LAYERS, st));
    R1_TRY(between("num_attention_heads", c->H, 1, MAX_WIDTH, st));
    R1_TRY(between("max_position_embeddings", c->T, 1, INT32_MAX, st));
    R1_TRY(check_attention(c, st));
    if (c->mtp > 1) {
        return R1_FAIL(st, R1_EINVAL, "config: num_nextn_predict_layers is %zu, at most 1 is known",
                       c->mtp);
    }
    size_t dense = config_dense(c);
    if (c->E > 0) {
        R1_TRY(check_moe(c, st));
    } else if (dense < c->L + c->mtp) {
        return R1_FAIL(st, R1_EINVAL, "config: a layer is a mixture, but n_routed_experts is 0");
    }
    /* with no dense layer it is not used, and nothing is allocated for it */
    R1_TRY(between("intermediate_size", c->F, dense > 0, MAX_WIDTH, st));
    if (!(c->eps > 0.0f && isfinite(c->eps)) || !(c->attn_scale > 0.0f && isfinite(c->attn_scale))) {
        return R1_FAIL(st, R1_EINVAL,
                       "config: rms_norm_eps %g and the attention scale %g must be above 0 and "
                       "finite",
                       (double)c->eps, (double)c->attn_scale);
    }
    R1_TRY(between("r of the adapters", c->lora, 0, MAX_WIDTH, st));
    if (!isfinite(c->routed_scale)) {
        return R1_FAIL(st, R1_EINVAL, "config: routed_scaling_factor %g must be finite",
                       (double)c->routed_scale);
    }
    return R1_OK;
}
