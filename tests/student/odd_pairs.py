"Questions and answers as people have them: several lines, indents, any script, and the names of control tokens."
from hypothesis import strategies as st

from llm_distill.core.prompt import trim

CONTROL = ('<|endoftext|>', '<|im_end|>', '<|im_start|>', '</s>', '<s>', '<unk>', '<bos>', '<|pad|>', '<end_of_turn>',
           '<filename>', '<reponame>', '<0x0A>')
WHITE = '\n', '\n\n', '\r\n', ' ', '  ', '\t', '\n    '
LINES = 'Q:', 'A:', '\nQ: x\nA:', 'alpha', 'x = 1', 'Grüße', 'Ελλάδα', 'አማርኛ', '日本語', 'हिन्दी', 'עברית', '🙂'
characters = st.characters(exclude_categories=['Cs'], exclude_characters='\0▁') # ▁ is the space of SentencePiece
pieces = st.one_of(st.sampled_from(CONTROL), st.sampled_from(WHITE), st.sampled_from(LINES), characters)


def is_canonical(text): return text and trim(text) == text


texts = st.lists(pieces, min_size=1, max_size=8).map(''.join).map(trim).filter(is_canonical)
