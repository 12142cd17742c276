"""Chat templates that render what the published ones are documented to render: the same tokens in the
same order, the same treatment of system messages, tools, thoughts and generation prompts. The
templates, and the instructions about tools in them, are written in our own words."""

QWEN2_5 = """\
{%- set default = 'You are a helpful assistant.' -%}
{%- set first = messages[0] -%}
{%- set system = first.content if first.role == 'system' else default -%}
<|im_start|>system
{{ system }}
{%- if tools %}


# Tools

Call a function where it helps. Signatures:
<tools>
{%- for tool in tools %}
{{ '\\n' }}{{ tool | tojson }}
{%- endfor %}

</tools>
{%- endif %}
{{- '<|im_end|>\\n' -}}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first)
           or (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for call in message.tool_calls %}
            {%- set call = call.function if call.function is defined else call %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# thoughts stay behind the last question only; enable_thinking=False closes an empty one
QWEN3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- 'Functions:\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' ~ (tool | tojson) }}{%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set seen = namespace(searching=true, question=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set i = messages|length - 1 - loop.index0 %}
    {%- if seen.searching and message.role == 'user' and message.content is string
           and not (message.content.startswith('<tool_response>')
                    and message.content.endswith('</tool_response>')) %}
        {%- set seen.searching = false %}
        {%- set seen.question = i %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if loop.index0 > seen.question and (loop.last or thought) %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if loop.first and content or not loop.first %}{{- '\\n' }}{%- endif %}
            {%- set call = call.function or call %}
            {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA3 = """\
{{- bos_token }}
{%- if date_string is not defined %}
    {%- set date_string = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools is not none %}
    {{- 'Environment: ipython\\n' }}
{%- endif %}
{{- 'Cutting Knowledge Date: December 2023\\n' }}
{{- 'Today Date: ' + date_string + '\\n\\n' }}
{%- if tools is not none %}
    {{- 'Functions that can be called, answer with JSON of name and parameters:\\n\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- '\\n\\n' }}
    {%- endfor %}
{%- endif %}
{{- system }}
{{- '<|eot_id|>' }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'
            + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception('one tool call at a time') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- '}' }}
        {{- '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# every earlier thought is dropped, the last turn's too; the generation prompt opens the thought
DEEPSEEK_R1 = """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{% set state = namespace(tool=false, first_call=true, system='') %}
{%- for message in messages if message['role'] == 'system' %}
    {%- set state.system = state.system + ('\\n\\n' if state.system else '') + message['content'] %}
{%- endfor %}
{{- bos_token }}{{ state.system }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {%- set state.tool = false %}
        {{- '<｜User｜>' + message['content'] }}
    {%- elif message['role'] == 'assistant' and message['tool_calls'] is defined
             and message['tool_calls'] is not none %}
        {%- set state.tool = false %}
        {%- for call in message['tool_calls'] %}
            {%- if loop.first %}
                {{- '<｜Assistant｜>' + (message['content'] or '') + '<｜tool▁calls▁begin｜>' }}
            {%- else %}
                {{- '\\n' }}
            {%- endif %}
            {{- '<｜tool▁call▁begin｜>' + call['type'] + '<｜tool▁sep｜>' + call['function']['name'] }}
            {{- '\\n```json\\n' ~ call['function']['arguments'] | tojson ~ '\\n```' }}
            {{- '<｜tool▁call▁end｜>' }}
        {%- endfor %}
        {{- '<｜tool▁calls▁end｜>' + eos_token }}
    {%- elif message['role'] == 'assistant' %}
        {%- if state.tool %}
            {{- '<｜tool▁outputs▁end｜>' + message['content'] + eos_token }}
            {%- set state.tool = false %}
        {%- else %}
            {%- set content = message['content'] %}
            {%- if '</think>' in content %}
                {%- set content = content.split('</think>')[-1] %}
            {%- endif %}
            {{- '<｜Assistant｜>' + content + eos_token }}
        {%- endif %}
    {%- elif message['role'] == 'tool' %}
        {{- '' if state.tool else '<｜tool▁outputs▁begin｜>' }}
        {{- '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' }}
        {%- set state.tool = true %}
    {%- endif %}
{%- endfor %}
{%- if state.tool %}{{ '<｜tool▁outputs▁end｜>' }}{% endif %}
{%- if add_generation_prompt and not state.tool %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}
"""

# not published: one with blocks that say what the assistant says
MASKED = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content }}<|im_end|>{% endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

FORMATS = {"qwen2_5": QWEN2_5, "qwen3": QWEN3, "llama3": LLAMA3, "deepseek_r1": DEEPSEEK_R1,
           "masked": MASKED}

_CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_TOOLS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
# (special tokens, further added tokens, {pad, bos, eos}) as the families have them
TOKENS = {
    "qwen2_5": (_CHATML, _TOOLS[:2], {"pad_token": _CHATML[0], "eos_token": _CHATML[2]}),
    "qwen3": (_CHATML, [*_TOOLS, "<think>", "</think>"],
              {"pad_token": _CHATML[0], "eos_token": _CHATML[2]}),
    "llama3": (["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                "<|end_header_id|>", "<|eot_id|>"], [],
               {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
    "deepseek_r1": (["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"],
                    ["<think>", "</think>", "<｜User｜>", "<｜Assistant｜>",
                     *(f"<｜tool▁{name}｜>" for name in (
                         "calls▁begin", "calls▁end", "call▁begin", "call▁end", "outputs▁begin",
                         "outputs▁end", "output▁begin", "output▁end", "sep"))],
                    {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>",
                     "pad_token": "<｜end▁of▁sentence｜>"}),
    "masked": (_CHATML, ["<think>", "</think>"],
               {"pad_token": _CHATML[0], "eos_token": _CHATML[2]}),
}

WEATHER = {"type": "function", "function": {
    "name": "weather", "description": "The weather in a town, in °C & <words>",
    "parameters": {"type": "object", "properties": {"town": {"type": "string"}},
                   "required": ["town"]}}}
_CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "function": {"name": "weather", "arguments": {"town": "Zürich"}}}]}

CHATS = {
    "one question": [{"role": "user", "content": "What is 2 + 3?"}],
    "system": [{"role": "system", "content": "  Be brief.\n"}, {"role": "user", "content": "Hi \n"}],
    "turns": [{"role": "user", "content": "你好 😀"}, {"role": "assistant", "content": "Hello\n\n"},
              {"role": "user", "content": "  and 7 * 8 ?"}, {"role": "assistant", "content": "56."}],
    "thoughts": [
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": "<think>\nTwo, three: five.\n</think>\n\nIt is 5."},
        {"role": "user", "content": "And twice that?"},
        {"role": "assistant", "content": "<think>\n5 * 2 = 10\n</think>\n\nIt is 10."}],
    "thought apart": [
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "reasoning_content": "Two, three: five.", "content": "It is 5."}],
    "tools": [{"role": "user", "content": "Weather in Zürich?"}, _CALL,
              {"role": "tool", "content": '{"celsius": 4}'},
              {"role": "assistant", "content": "It is 4 °C."}],
    "markup": [{"role": "user", "content": "a <b> & \"c\" {{ 1 }} {% x %} \\n 'd' < | > <| |>"}],
}
