"""From rows and pairs to directions: one eigenproblem, and nothing of images or models.

`differences` turns every source of pairs into rows whose outer products add up,
`sums` adds them up over any split of the data, `directions` solves for what is kept,
and `arrays` does the arithmetic for numpy and for other array libraries.
"""
