/* config.c - can this configuration be? One function, so that every later file may assume it. */
#include "model.h"

static r1_code
positive(const char *field, size_t value, r1_status *st)
{
    if (value == 0 || value > INT32_MAX) {
        return R1_FAIL(st, R1_EINVAL, "config: %s is %zu, must be between 1 and 2^31 - 1", field,
                       value);
    }
    return R1_OK;
}

static r1_code
check_attention(const r1_config *c, r1_status *st)
{
    size_t widest = config_dqk(c) > config_dv(c) ? config_dqk(c) : config_dv(c);
    size_t rotary = config_mla(c) ? c->Dr : c->D;
    if (config_mla(c)) {
        R1_TRY(positive("qk_nope_head_dim", c->Dn, st));
        R1_TRY(positive("qk_rope_head_dim", c->Dr, st));
        R1_TRY(positive("v_head_dim", c->Dv, st));
    } else {
        R1_TRY(positive("num_key_value_heads", c->Hkv, st));
        R1_TRY(positive("head_dim", c->D, st));
        if (c->H % c->Hkv != 0) {
            return R1_FAIL(st, R1_EINVAL,
                           "config: num_attention_heads %zu is not a multiple of "
                           "num_key_value_heads %zu",
                           c->H, c->Hkv);
        }
    }
    if (rotary % 2 != 0) {
        return R1_FAIL(st, R1_EINVAL, "config: rotary head width %zu is odd", rotary);
    }
    if (widest > R1_MAX_HEAD_DIM) {
        return R1_FAIL(st, R1_EINVAL, "config: head width %zu exceeds %d", widest,
                       R1_MAX_HEAD_DIM);
    }
    return R1_OK;
}

static r1_code
check_moe(const r1_config *c, r1_status *st)
{
    R1_TRY(positive("num_experts_per_tok", c->K, st));
    R1_TRY(positive("moe_intermediate_size", c->Fe, st));
    R1_TRY(positive("n_group", c->groups, st));
    if (c->K > c->E) {
        return R1_FAIL(st, R1_EINVAL, "config: num_experts_per_tok %zu exceeds n_routed_experts %zu",
                       c->K, c->E);
    }
    if (c->K > R1_MAX_TOPK || c->E > 1024) {
        return R1_FAIL(st, R1_EINVAL,
                       "config: at most %d experts per token of at most 1024, got %zu of %zu",
                       R1_MAX_TOPK, c->K, c->E);
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
    R1_TRY(positive("vocab_size", c->V, st));
    R1_TRY(positive("hidden_size", c->C, st));
    R1_TRY(positive("num_hidden_layers", c->L, st));
    R1_TRY(positive("num_attention_heads", c->H, st));
    R1_TRY(positive("max_position_embeddings", c->T, st));
    R1_TRY(check_attention(c, st));
    if (c->E > 0) {
        R1_TRY(check_moe(c, st));
    }
    if (c->E == 0 || c->first_dense > 0) {
        R1_TRY(positive("intermediate_size", c->F, st));
    }
    if (c->first_dense > c->L) {
        return R1_FAIL(st, R1_EINVAL, "config: first_k_dense_replace %zu exceeds num_hidden_layers %zu",
                       c->first_dense, c->L);
    }
    if (c->mtp > 1) {
        return R1_FAIL(st, R1_EINVAL, "config: num_nextn_predict_layers is %zu, at most 1 is known",
                       c->mtp);
    }
    if (!(c->eps > 0.0f) || !(c->rope_theta > 0.0f)) {
        return R1_FAIL(st, R1_EINVAL, "config: rms_norm_eps %g and rope_theta %g must be above 0",
                       (double)c->eps, (double)c->rope_theta);
    }
    return R1_OK;
}
