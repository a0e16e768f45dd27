"""XRec: explanations for recommendations (Ma, Ren, Huang, arXiv 2406.02377).

The library: no Ray, no web framework, nothing imported before it is used. Stages of a pipeline are in `ray_jobs`.
"""

__version__ = "0.1.0"
