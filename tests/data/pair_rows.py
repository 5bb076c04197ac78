"Rows of a data set."


def rows(n, **more):
    origin = dict(seed_question='s', teacher='m', request='k')
    def row(i): return dict(question=f'Zürich {i}?', answer='a, "b"', sample=i, agreement=None if i % 2 else i/10)
    return [row(i) | origin | more for i in range(n)]
