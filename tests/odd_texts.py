"Texts that attack parsers and messages, and the check that an error is one line."
import pytest
from hypothesis import settings, strategies as st

from llm_distill.core.core import DistillError

anything = settings(max_examples=150, deadline=None, derandomize=True)
texts = st.one_of(st.text(), st.text('{}[]":,.-/0123456789scoreNaNQ: \n'),
                  st.binary().map(lambda b: b.decode('utf-8', 'surrogateescape')))


def error_of(call, *args, **kwargs):
    "Return the error message of a call, which must be one line."
    with pytest.raises(DistillError) as e: call(*args, **kwargs)
    message = str(e.value)
    assert len(message.splitlines()) == 1 and len(message) < 600
    return message
