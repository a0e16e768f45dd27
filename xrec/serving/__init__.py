"""Live explanations, without the server: what is looked up for a pair, and how an engine answers many callers.

Ray Serve and HTTP are the business of the package `serve`.
"""
