import pytest
from hypothesis import given
from hypothesis import strategies as st

from nunet_cli.errors import UsageError
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.reader import read_spec
from nunet_cli.jobs.spec import encode_spec
from nunet_cli.jobs.tree import price_limit, required_capability

GOOD = """
name: count
executor: {type: process, command: [sh, -c, "wc -w in.txt > out.txt"]}
resources: {cpu: 0.5, memory: 64MiB}
inputs: [{path: data/in.txt}]
outputs: [{path: out.txt}]
price: 1.5 NTX/h
time: {max_duration: 30m}
"""


def test_units_short_forms_and_defaults() -> None:
    spec = read_spec(GOOD)
    assert spec.resources.cpu.cores == 0.5
    assert spec.resources.memory == 64 * 2**20
    assert spec.resources.disk > 0
    assert spec.inputs[0].to == "in.txt"
    assert spec.time.max_duration == 1800
    # the limit for the whole job: half an hour at 1.5 NTX an hour
    assert price_limit(spec) == 750_000
    assert required_capability(spec).price.amount == "0.75"


def test_a_job_without_a_price_spends_nothing() -> None:
    assert price_limit(read_spec("name: a\nexecutor: {type: 'null'}\n")) == 0


def test_a_specification_survives_the_wire_byte_for_byte() -> None:
    text = encode_spec(read_spec(GOOD))
    assert encode_spec(decode_spec(text)) == text


def test_json_and_toml_say_the_same() -> None:
    from_json = read_spec('{"name": "a", "executor": {"type": "process", "command": ["true"]}}', source="a.json")
    from_toml = read_spec('name = "a"\n[executor]\ntype = "process"\ncommand = ["true"]\n', source="a.toml")
    assert from_json == from_toml


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("name: x\nexecutor:\n  typ: process\n", "job.yaml:3:3: executor.typ: unknown field `typ`", "type"),
        ("name: x\nexecutor: {type: 'null'}\nresources:\n  memory: -5\n", "job.yaml:4:3: resources.memory: a size", ""),
        ("name: x\nexecutor: {type: 'null'}\nmemory: 5\n", "job.yaml:3:1: memory: unknown field", ""),
        ("name: x\nexecutor: {type: docker}\n", "job.yaml:2:1: executor.image: a docker job needs `image`", "image"),
        ("name: x\nexecutor: {type: process}\n", "job.yaml:2:1: executor.command", "command"),
        ("name: x\nexecutor: {type: process, command: [1]}\n", "job.yaml:2:37: executor.command", ""),
        ("executor: {type: 'null'}\n", "job.yaml:1:1: the field `name` is missing", "name"),
        ("name: [", "job.yaml:1:8: not YAML", ""),
        ("- a\n- b\n", "a mapping of fields, this is a list", ""),
        ("name: x\nname: y\n", "job.yaml:2:1: name: the field is there twice", ""),
        ("name: a b\nexecutor: {type: 'null'}\n", "job.yaml:1:1: name", ""),
        ("name: x\nexecutor: {type: 'null'}\ninputs: [{path: a, to: ../../etc/passwd}]\n", "must stay inside", ""),
        ("name: x\nexecutor: {type: 'null'}\ninputs: [{path: a, to: /etc/passwd}]\n", "must stay inside", ""),
        ("name: x\nexecutor: {type: 'null'}\noutputs: [{path: a}, {path: b/a}]\n", "output name 'a' is taken", ""),
        ("name: x\nexecutor: {type: 'null'}\noutputs: [{path: stdout}]\n", "output name 'stdout' is taken", ""),
        ("name: x\nexecutor: {type: 'null'}\nprice: much\n", "job.yaml:3:1: price.max: not an amount", ""),
        ("name: x\nexecutor: {type: 'null'}\ntime: {max_duration: never}\n", "job.yaml:3:8: time.max_duration", ""),
        ("name: x\nexecutor: {type: 'null'}\ntype: daemon\n", "job.yaml:3:1: type: invalid enum value", ""),
    ],
)
def test_wrong_input_names_line_field_and_remedy(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_spec(text)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_an_alias_bomb_is_refused_before_it_grows() -> None:
    layers = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    layers += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    with pytest.raises(UsageError):
        read_spec("\n".join(layers))


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused_with_a_usage_error(text: str) -> None:
    try:
        read_spec(text)
    except UsageError as error:
        assert error.message
