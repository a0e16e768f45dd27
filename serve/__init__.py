"""The Ray Serve application: composition only. What is looked up and how engines answer: see `xrec.serving`."""
