"""Messages between harness and worker."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from optimizer.profiling.worker_messages import read_message, write_message

arrays = st.dictionaries(
    st.text(min_size=1, max_size=5),
    npst.arrays(
        st.sampled_from([np.int64, np.float32, np.bool_]),
        npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    max_size=3,
)
header = st.dictionaries(
    st.text(max_size=5).filter(lambda k: k != "arrays"),
    st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers(), max_size=3),
    max_size=4,
)


@given(st.lists(st.tuples(header, arrays), max_size=3))
def test_messages_survive_a_round_trip(messages: list) -> None:
    stream = io.BytesIO()
    for head, data in messages:
        write_message(stream, head, data)
    stream.seek(0)
    for head, data in messages:
        message = read_message(stream)
        assert message is not None
        assert message[0] == head
        assert list(message[1]) == list(data)
        for name, array in data.items():
            assert message[1][name].dtype == array.dtype
            np.testing.assert_array_equal(message[1][name], array)
    assert read_message(stream) is None


@pytest.mark.parametrize(
    "sent",
    [
        b"[1, 2]\n",
        b"Segmentation fault\n",
        b'{"ok": true}\n',
        b'{"arrays": {"x": ["<i8", [4]]}}\n1234567',
        b'{"arrays": {"x": ["O", [1]]}}\n12345678',
        b'{"arrays": {"x": ["<i8", [-1]]}}\n',
        json.dumps({"arrays": {"x": ["<i8", [1 << 40]]}}).encode() + b"\n",
    ],
)
def test_invalid_messages_are_refused(sent: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_message(io.BytesIO(sent))
