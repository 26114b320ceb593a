"""The networks: backbone, heads, fusion, text encoder, and the two models made of them."""
