"""Pages of real questions, each with its data, a model, a picture, and the answer beside another tool's.

    python -m examples.gallery [--out docs/gallery] [NAME ...]

runs them and writes a page of Markdown and a picture each; no figure on a page is typed in.
"""
