"""Where each stage runs and how wide: one module a stage, each also `python -m ray_jobs.<module> --config run.yaml`.

What a stage computes is the business of `xrec`; nothing in `xrec` imports this package but the functions of `cli.py`.
"""
