"""Announces the representation `hash-grid-tcnn` to instamap, without importing torch."""

from instamap import Component, hookimpl

NGP = "Müller et al., ACM Trans. Graph. 41, 102 (2022), doi 10.1145/3528223.3530127"
TINY_CUDA_NN = "Müller, tiny-cuda-nn (2021), https://github.com/NVlabs/tiny-cuda-nn"


@hookimpl
def instamap_components():
    return [
        Component(
            "representation",
            "hash-grid-tcnn",
            "instamap_tinycudann.hash_grid:TinyCudaHashGrid",
            "the hash grid, encoded by NVIDIA's tinycudann on its cards",
            f"{NGP}; {TINY_CUDA_NN}",
        ),
    ]
