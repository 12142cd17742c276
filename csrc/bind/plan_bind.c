/* plan_bind.c - the memory plan: bytes by purpose, from a configuration alone. See csrc/model/plan.c.
 *
 * Every function takes the device, whose threads have scratch of their own, and a configuration, and
 * gives a dict of bytes; r1grpo/plan.py is its face.
 */
#define PY_SSIZE_T_CLEAN
#include "model_bind.h"

/* The next argument as a configuration. */
static void
arg_config(r1_args *a, r1_config *config)
{
    *config = (r1_config){0};
    PyObject *dict = arg_object(a, "config");
    if (dict != NULL && config_read(dict, config) < 0) {
        a->failed = 1;
    }
}

/* Ends the call: the dict, which this takes, or the exception. */
static PyObject *
plan_end(r1_call *c, PyObject *(*make)(const void *), const void *from)
{
    PyObject *none = call_close(c);
    Py_XDECREF(none);
    return none != NULL ? make(from) : NULL;
}

static PyObject *
model_dict(const void *from)
{
    const r1_model_bytes *b = from;
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K}", "master", (unsigned long long)b->master, "packed",
                         (unsigned long long)b->packed, "vectors", (unsigned long long)b->vectors, "grads",
                         (unsigned long long)b->grads, "moments", (unsigned long long)b->moments, "update",
                         (unsigned long long)b->update, "host", (unsigned long long)b->host,
                         "own", (unsigned long long)b->own);
}

static PyObject *
plan_model(PyObject *Py_UNUSED(module), PyObject *const *items, Py_ssize_t count)
{
    r1_call c;
    r1_config config;
    r1_model_bytes bytes = {0};
    call_open(&c, "plan_model", items, count);
    arg_config(&c.args, &config);
    r1_dtype dtype = arg_dtype(&c.args, "dtype");
    if (call_begin(&c)) {
        r1_plan_model(&config, dtype, c.ops, c.dev, &bytes, &c.st);
    }
    return plan_end(&c, model_dict, &bytes);
}

static PyObject *
pass_dict(const void *from)
{
    const r1_pass_bytes *b = from;
    return Py_BuildValue("{s:K,s:K,s:K,s:K}", "acts", (unsigned long long)b->acts, "head",
                         (unsigned long long)b->head, "cache", (unsigned long long)b->cache, "own",
                         (unsigned long long)b->own);
}

static PyObject *
plan_pass(PyObject *Py_UNUSED(module), PyObject *const *items, Py_ssize_t count)
{
    static const char *const keeps[] = {"none", "stream", "all", NULL}; /* r1_keep */
    r1_call c;
    r1_args *a = &c.args;
    r1_config config;
    r1_pass_bytes bytes = {0};
    call_open(&c, "plan_pass", items, count);
    arg_config(a, &config);
    r1_dtype dtype = arg_dtype(a, "dtype");
    const int32_t *start = arg_i32(a, "start", "B+1", "1", ARG_IN);
    size_t ends = arg_dim(a, "B+1");
    arg_require(a, ends > 0, "start is empty");
    arg_bind(a, "B", ends - 1);
    const int32_t *first = arg_i32(a, "first", "B", "1", ARG_IN);
    const int32_t *group = arg_i32(a, "group", "B", "1", ARG_IN | ARG_NULL);
    size_t micro_rows = arg_size(a, "micro_rows");
    r1_batch batch = {.B = ends - 1, .start = start, .first = first, .group = group};
    batch.pairs = arg_flag(a, "pairs");
    r1_keep keep = (r1_keep)arg_choice(a, "keep", keeps);
    for (size_t b = 0; !a->failed && b < batch.B; b++) {
        arg_require(a, start[b] < start[b + 1] && start[b] >= 0, "start does not ascend at %zu",
                    b);
        arg_require(a, a->failed || (first[b] >= 1 && first[b] <= start[b + 1] - start[b]),
                    "first[%zu] is not in its sequence", b);
        arg_require(a, a->failed || group == NULL || b == 0 || group[b] != group[b - 1] ||
                           first[b] == first[b - 1],
                    "first[%zu] is not that of its group", b);
    }
    arg_require(a, !batch.pairs || (batch.B % 2 == 0 && group == NULL), "no pairs");
    if (call_begin(&c)) {
        r1_plan_pass(&config, dtype, c.ops, c.dev, &batch, micro_rows, keep, &bytes, &c.st);
    }
    return plan_end(&c, pass_dict, &bytes);
}

static PyObject *
decode_dict(const void *from)
{
    const r1_decode_bytes *b = from;
    return Py_BuildValue("{s:K,s:K,s:K,s:N}", "slots", (unsigned long long)b->slots, "kv",
                         (unsigned long long)b->kv, "rest", (unsigned long long)b->rest, "pass",
                         pass_dict(&b->pass));
}

static PyObject *
plan_decode(PyObject *Py_UNUSED(module), PyObject *const *items, Py_ssize_t count)
{
    r1_call c;
    r1_args *a = &c.args;
    r1_config config;
    r1_decode_bytes bytes = {0};
    call_open(&c, "plan_decode", items, count);
    arg_config(a, &config);
    r1_dtype dtype = arg_dtype(a, "dtype");
    size_t P = arg_size(a, "prompts"), G = arg_size(a, "num_generations");
    size_t prompt = arg_size(a, "prompt_length"), max_new = arg_size(a, "max_new_tokens");
    size_t slots = arg_size(a, "slots");
    int speculative = arg_flag(a, "speculative");
    size_t most = INT32_MAX;
    arg_require(a, P >= 1 && P <= most && G >= 1 && G <= most && max_new >= 1 && max_new <= most &&
                       slots >= 1 && slots <= most,
                "prompts, num_generations, max_new_tokens and slots must be in 1 .. %zu", most);
    arg_require(a, a->failed || (prompt >= 1 && prompt < config.T),
                "a prompt of %zu leaves no room in a context of %zu", prompt, config.T);
    if (call_begin(&c)) {
        r1_plan_decode(&config, dtype, c.ops, c.dev, P, G, prompt, max_new, slots, speculative,
                       &bytes, &c.st);
    }
    return plan_end(&c, decode_dict, &bytes);
}

#define FUNCTION(function, arguments, text)                                                       \
    {                                                                                             \
        #function, (PyCFunction)(void (*)(void))function, METH_FASTCALL,                          \
            #function "(device, config, dtype, " arguments "/)\n--\n\n" text                             \
    }

static PyMethodDef functions[] = {
    FUNCTION(plan_model, "", "Bytes of a model: master, packed, vectors, grads, moments, update, host; own: what the "
             "device holds for itself then."),
    FUNCTION(plan_pass, "start, first, group, micro_rows, pairs, keep, ",
             "Bytes of log-probs or a gradient of packed sequences, in groups or in pairs: acts, head, "
             "cache, own. keep: 'none' without gradient, 'stream' recomputed, 'all'."),
    FUNCTION(plan_decode, "prompts, num_generations, prompt_length, max_new_tokens, slots, speculative, ",
             "Bytes of a sampling session: slots (a count), kv, rest, and its pass."),
    {NULL, NULL, 0, NULL},
};

int
plan_bind_add(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
