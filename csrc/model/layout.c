/* layout.c - every parameter of the model, from its configuration: names, shapes, accumulators.
 *
 * Names are Hugging Face's (DeepSeek-V3, Llama, Mistral, Qwen2, Qwen3), so that the state dict is the
 * file format.
 * One device allocation each for vectors, gradients and Adam's moments; gradients come with the first
 * gradient call, moments with the first update, so that a model that only samples has neither. Each is
 * placed by one function, which run without memory measures (plan.c). The matrices of a frozen model
 * lie packed in one piece of memory, which may be the caller's; it has nothing else of them. Its layers
 * may lie in host memory (offload.c), and so may moments (update.c).
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

static r1_param *
param_add(r1_model *m, size_t E, size_t O, size_t I, size_t uses, const char *format, ...)
    R1_PRINTF(6, 7);

/* A vector has O == 0. */
static r1_param *
param_add(r1_model *m, size_t E, size_t O, size_t I, size_t uses, const char *format, ...)
{
    r1_param *p = &m->params[m->n_params++];
    va_list args;
    va_start(args, format);
    vsnprintf(p->name, sizeof p->name, format, args);
    va_end(args);
    p->E = E;
    p->O = O;
    p->I = I;
    p->uses = uses;
    p->dtype = O == 0 ? R1_F32 : m->dtype;
    p->trained = 1;
    return p;
}

static r1_linear
linear_of(r1_param *weight, size_t use)
{
    return (r1_linear){.weight = weight, .use = use};
}

static r1_linear
linear_add(r1_model *m, size_t layer, size_t E, size_t O, size_t I, const char *stem)
{
    return linear_of(param_add(m, E, O, I, 1, "model.layers.%zu.%s.weight", layer, stem), 0);
}

/* With its bias, if has_bias. */
static r1_linear
biased_add(r1_model *m, size_t layer, size_t O, size_t I, const char *stem, int has_bias)
{
    r1_linear l = linear_add(m, layer, 1, O, I, stem);
    if (has_bias) {
        l.bias = param_add(m, 1, 0, O, 1, "model.layers.%zu.%s.bias", layer, stem);
    }
    return l;
}

static r1_param *
norm_add(r1_model *m, size_t layer, size_t I, const char *stem)
{
    return param_add(m, 1, 0, I, 1, "model.layers.%zu.%s.weight", layer, stem);
}

static void
attention_add(r1_model *m, r1_layer *l, size_t i)
{
    const r1_config *c = &m->config;
    size_t dqk = config_dqk(c);
    if (config_mla(c)) {
        if (c->q_lora > 0) {
            l->q_a = biased_add(m, i, c->q_lora, c->C, "self_attn.q_a_proj", c->qkv_bias);
            l->q_norm = norm_add(m, i, c->q_lora, "self_attn.q_a_layernorm");
            l->q_b = linear_add(m, i, 1, c->H * dqk, c->q_lora, "self_attn.q_b_proj");
        } else {
            l->q = linear_add(m, i, 1, c->H * dqk, c->C, "self_attn.q_proj");
        }
        l->kv_a = biased_add(m, i, c->kv_lora + c->Dr, c->C, "self_attn.kv_a_proj_with_mqa",
                             c->qkv_bias);
        l->kv_norm = norm_add(m, i, c->kv_lora, "self_attn.kv_a_layernorm");
        l->kv_b = linear_add(m, i, 1, c->H * (c->Dn + c->Dv), c->kv_lora, "self_attn.kv_b_proj");
    } else {
        size_t wide = c->H * c->D, narrow = c->Hkv * c->D;
        l->q = biased_add(m, i, wide, c->C, "self_attn.q_proj", c->qkv_bias);
        l->k = biased_add(m, i, narrow, c->C, "self_attn.k_proj", c->qkv_bias);
        l->v = biased_add(m, i, narrow, c->C, "self_attn.v_proj", c->qkv_bias);
        if (c->qk_norm) {
            l->q_norm = norm_add(m, i, c->D, "self_attn.q_norm");
            l->kv_norm = norm_add(m, i, c->D, "self_attn.k_norm");
        }
    }
    l->o = biased_add(m, i, c->C, c->H * config_dv(c), "self_attn.o_proj", c->o_bias);
}

static void
ffn_add(r1_model *m, r1_layer *l, size_t i)
{
    const r1_config *c = &m->config;
    l->moe = config_moe(c, i);
    if (!l->moe) {
        l->gate = biased_add(m, i, c->F, c->C, "mlp.gate_proj", c->mlp_bias);
        l->up = biased_add(m, i, c->F, c->C, "mlp.up_proj", c->mlp_bias);
        l->down = biased_add(m, i, c->C, c->F, "mlp.down_proj", c->mlp_bias);
        return;
    }
    l->router = linear_add(m, i, 1, c->E, c->C, "mlp.gate");
    l->router.weight->dtype = R1_F32; /* a rounded score would send rows to other experts */
    if (c->router_bias) {
        l->router_bias =
            param_add(m, 1, 0, c->E, 1, "model.layers.%zu.mlp.gate.e_score_correction_bias", i);
        l->router_bias->trained = 0;
    }
    l->egate = linear_add(m, i, c->E, c->Fe, c->C, "mlp.experts.*.gate_proj");
    l->eup = linear_add(m, i, c->E, c->Fe, c->C, "mlp.experts.*.up_proj");
    l->edown = linear_add(m, i, c->E, c->C, c->Fe, "mlp.experts.*.down_proj");
    if (c->shared > 0) {
        size_t F = c->shared * c->Fe;
        l->gate = linear_add(m, i, 1, F, c->C, "mlp.shared_experts.gate_proj");
        l->up = linear_add(m, i, 1, F, c->C, "mlp.shared_experts.up_proj");
        l->down = linear_add(m, i, 1, c->C, F, "mlp.shared_experts.down_proj");
    }
}

static void
adapter_add(r1_model *m, r1_linear *l, size_t bit)
{
    const r1_config *c = &m->config;
    const r1_param *w = l->weight;
    if (w == NULL || (c->lora_targets >> bit & 1) == 0) {
        return;
    }
    int stem = (int)(strlen(w->name) - strlen(".weight"));
    l->down = param_add(m, w->E, c->lora, w->I, 1, "%.*s.lora_A.weight", stem, w->name);
    l->up = param_add(m, w->E, w->O, c->lora, 1, "%.*s.lora_B.weight", stem, w->name);
    l->down->dtype = l->up->dtype = R1_F32; /* small, and what is learned: nothing to gain by rounding */
}

/* The adapters come after everything else, and freeze it but for the head of a reward model. Bit j of
 * config.lora_targets stands for targets[j]; those of gate, up and down for the experts' too. */
static void
adapters_add(r1_model *m)
{
    for (size_t i = 0; i < m->n_params; i++) {
        m->params[i].trained = &m->params[i] == m->score.weight;
    }
    for (size_t i = 0; i < m->config.L + m->config.mtp; i++) {
        r1_layer *l = &m->layers[i];
        r1_linear *const targets[] = {&l->q,    &l->k,    &l->v,    &l->o,  &l->q_a, &l->q_b,
                                      &l->kv_a, &l->kv_b, &l->gate, &l->up, &l->down};
        for (size_t j = 0; j < sizeof targets / sizeof targets[0]; j++) {
            adapter_add(m, targets[j], j);
        }
        r1_linear *const experts[] = {&l->egate, &l->eup, &l->edown};
        size_t first = sizeof targets / sizeof targets[0] - 3; /* gate */
        for (size_t j = 0; j < 3; j++) {
            adapter_add(m, experts[j], first + j);
        }
    }
}

static void
params_add(r1_model *m)
{
    const r1_config *c = &m->config;
    size_t shared = c->mtp ? 2 : 1;
    m->embed = param_add(m, 1, c->V, c->C, c->tied ? 2 * shared : shared,
                         "model.embed_tokens.weight");
    for (size_t i = 0; i < c->L + c->mtp; i++) {
        r1_layer *l = &m->layers[i];
        if (i == c->L) { /* the MTP module sits after the last layer, as in DeepSeek's files */
            m->enorm = norm_add(m, i, c->C, "enorm");
            m->hnorm = norm_add(m, i, c->C, "hnorm");
            m->eh = linear_add(m, i, 1, c->C, 2 * c->C, "eh_proj");
        }
        l->first = m->n_params;
        l->window = i < c->L && c->windowed[i] ? c->window : 0; /* the MTP module has none: ours */
        l->attn_norm = norm_add(m, i, c->C, "input_layernorm");
        attention_add(m, l, i);
        l->ffn_norm = norm_add(m, i, c->C, "post_attention_layernorm");
        ffn_add(m, l, i);
        if (i == c->L) {
            m->mtp_norm = norm_add(m, i, c->C, "shared_head.norm");
        }
        l->end = m->n_params;
    }
    m->norm = param_add(m, 1, 0, c->C, 1, "model.norm.weight");
    if (c->tied) { /* uses: embedding, head, MTP's embedding, MTP's head */
        m->head = linear_of(m->embed, 1);
        m->mtp_head = linear_of(m->embed, 3);
        m->mtp_embed_use = 2;
    } else {
        m->head = linear_of(param_add(m, 1, c->V, c->C, shared, "lm_head.weight"), 0);
        m->mtp_head = linear_of(m->head.weight, 1);
        m->mtp_embed_use = 1;
    }
    if (c->score) {
        m->score = linear_of(param_add(m, 1, 1, c->C, 1, "score.weight"), 0);
        m->score.weight->dtype = R1_F32;
    }
    if (c->lora > 0) {
        adapters_add(m);
    }
    for (size_t i = 0; c->frozen && i < m->n_params; i++) {
        m->params[i].trained = 0;
    }
}

void
vectors_place(r1_model *m, r1_arena *vectors)
{
    for (size_t i = 0; i < m->n_params; i++) {
        r1_param *p = &m->params[i];
        if (p->O == 0) {
            p->value = r1_f32(r1_arena_push(vectors, p->I, sizeof(float)), 1, p->I);
        }
    }
    m->loads = r1_arena_push(vectors, (m->config.L + m->config.mtp) * m->config.E, sizeof(int64_t));
}

void
grads_place(r1_model *m, r1_arena *grads)
{
    for (size_t i = 0; i < m->n_params; i++) {
        r1_param *p = &m->params[i];
        size_t rows = param_rows(p);
        for (size_t u = 0; p->trained && u < p->uses; u++) {
            p->grad[u] = r1_f32(r1_arena_push(grads, rows * p->I, sizeof(float)), rows, p->I);
        }
    }
}

/* Runs a placing function to measure, allocates, here or in host memory, runs it again to place. */
static r1_code
place(r1_model *m, void (*fn)(r1_model *, r1_arena *), int host, void **memory, const char *what,
      r1_status *st)
{
    r1_arena a = {0};
    fn(m, &a);
    a.size = a.used;
    a.used = 0;
    *memory = a.base = host ? m->ops->mem_alloc_host(m->dev, a.size, st) : m->ops->mem_alloc(m->dev, a.size, st);
    if (a.base == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "out of memory for %zu bytes of %s", a.size, what);
    }
    fn(m, &a);
    return R1_OK;
}

r1_code
layout_params(r1_model *m, r1_status *st)
{
    size_t layers = m->config.L + m->config.mtp;
    m->layers = r1_alloc(layers, sizeof *m->layers);
    m->params = r1_alloc(layers * 52 + 8, sizeof *m->params); /* 24 and 14 adapters a layer */
    if (m->layers == NULL || m->params == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "out of memory for the list of parameters");
    }
    params_add(m);
    return R1_OK;
}

void
matrices_measure(const r1_model *m, r1_arena *master, r1_arena *packed)
{
    for (size_t i = 0; i < m->n_params; i++) {
        const r1_param *p = &m->params[i];
        size_t one, copy, layer;
        if (p->O > 0 && !offload_layer(m, i, &layer)) {
            m->ops->weight_bytes(&one, &copy, p->E, p->O, p->I, p->dtype, m->config.frozen);
            r1_arena_push(master, one, 1);
            r1_arena_push(packed, copy, 1);
        }
    }
}

/* The memory of a frozen model's matrices: what the caller gave, or our own, for which `own` is room. */
static r1_code
frozen_memory(r1_model *m, r1_arena **packed, r1_arena *own, r1_status *st)
{
    r1_arena none = {0}, need = {0};
    matrices_measure(m, &none, &need);
    if (*packed == NULL) {
        *own = (r1_arena){m->ops->mem_alloc(m->dev, need.used, st), need.used, 0};
        m->packed = own->base;
        *packed = own;
    }
    if ((*packed)->base == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "out of memory for %zu bytes of frozen matrices", need.used);
    }
    if ((*packed)->size < need.used || (uintptr_t)(*packed)->base % 64 != 0) {
        return R1_FAIL(st, R1_EINVAL, "%zu bytes are given for frozen matrices of %zu, or not aligned "
                       "to 64", (*packed)->size, need.used);
    }
    return R1_OK;
}

r1_code
layout_memory(r1_model *m, r1_arena *packed, r1_status *st)
{
    r1_arena own;
    R1_TRY(place(m, vectors_place, 0, &m->vectors, "norms and biases", st));
    if (m->config.frozen) {
        R1_TRY(frozen_memory(m, &packed, &own, st));
        R1_TRY(m->config.offload ? offload_open(m, st) : R1_OK);
    }
    for (size_t i = 0; i < m->config.L + m->config.mtp; i++) {
        m->layers[i].load = m->loads + i * m->config.E;
    }
    for (size_t i = 0; i < m->n_params; i++) {
        r1_param *p = &m->params[i];
        if (p->O > 0) {
            size_t none, copy;
            m->ops->weight_bytes(&none, &copy, p->E, p->O, p->I, p->dtype, m->config.frozen);
            void *at = p->packed != NULL ? p->packed
                       : m->config.frozen ? r1_arena_push(packed, copy, 1) : NULL;
            R1_TRY(m->ops->weight_open(m->dev, &p->weight, p->E, p->O, p->I, p->dtype, at, st));
            p->value = m->ops->weight_view(p->weight);
            if (p->packed != NULL) {
                p->value.data = NULL; /* its place is another layer's too: nobody may look there */
            }
        }
    }
    return R1_OK;
}

void
moments_place(r1_model *m, r1_arena *a)
{
    for (size_t i = 0; i < m->n_params; i++) {
        r1_param *p = &m->params[i];
        if (p->trained) {
            size_t rows = param_rows(p);
            p->m = r1_f32(r1_arena_push(a, rows * p->I, sizeof(float)), rows, p->I);
            p->v = r1_f32(r1_arena_push(a, rows * p->I, sizeof(float)), rows, p->I);
        }
    }
}

r1_code
model_trainable(const r1_model *m, const char *what, r1_status *st)
{
    return m->config.frozen ? R1_FAIL(st, R1_EINVAL, "this model is frozen: it has no %s", what)
                            : R1_OK;
}

r1_code
r1_model_grads(r1_model *m, r1_status *st)
{
    R1_TRY(model_trainable(m, "gradients", st));
    return m->grads != NULL ? R1_OK : place(m, grads_place, 0, &m->grads, "gradients", st);
}

r1_code
r1_model_moments(r1_model *m, r1_status *st)
{
    R1_TRY(model_trainable(m, "optimiser moments", st));
    return m->moments != NULL ? R1_OK
                              : place(m, moments_place, m->config.offload, &m->moments,
                                      "optimiser moments", st);
}
