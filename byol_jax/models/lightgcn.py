"""Embeddings of users and items, alone or averaged over their neighbours in the graph of
interactions: LightGCN (He et al. 2020, arXiv 2002.02126), estimated from random walks.

With A the graph's adjacency matrix and D its degrees, layer l of LightGCN (section 3.1.1) is

    E_l = (D^-1/2 A D^-1/2)^l E_0,    the embedding of a node: the mean of E_0, ..., E_L.

A random walk from node u that is at node v after l steps has the probability of its path, the
product of 1 / degree over the nodes that it left. So the mean of sqrt(degree_u / degree_v) E_0[v]
over walks is an unbiased estimate of E_l[u]: no process needs the whole graph, and the walks of a
training step are the random subset of neighbours that BUIR-NB (arXiv 2105.06323) has as its
augmentation.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

OTHER = {"user": "item", "item": "user"}
INIT_STD = 0.1  # as in LightGCN's code


class LightGCN(nn.Module):
    """Two tables of embeddings, which start from a normal distribution.

    Attributes:
      features: numbers of an embedding.
      users: how many there are; from the data.
      items: likewise.
    """

    features: int = 64
    users: int | None = None
    items: int | None = None

    def __post_init__(self):
        """Raises ValueError without features."""
        if self.features < 1:
            raise ValueError(f"features={self.features} must be at least 1.")
        super().__post_init__()

    def check_image_size(self, height: int, width: int) -> None:
        """Raises ValueError: it takes no images."""
        raise ValueError("name='lightgcn' takes users and items, not images: choose preset buir.")

    @nn.compact
    def __call__(self, x: dict[str, dict[str, jax.Array]]) -> jax.Array:
        """Nodes "user", "item" or both -> the mean of their embeddings, float32 (batch, features).

        A node has "id", int32 (batch,), and for layers above 0 "walks", int32 (batch, walks,
        layers), the node after each step, and "weights", float32 of that shape, as above.
        """
        init = nn.initializers.normal(INIT_STD)
        tables = {
            name: nn.Embed(count, self.features, embedding_init=init, name=name)
            for name, count in (("user", self.users), ("item", self.items))
        }

        def embed(name: str, node: dict[str, jax.Array]) -> jax.Array:
            layers = [tables[name](node["id"])]
            for layer in range(node["walks"].shape[-1] if "walks" in node else 0):
                at = (
                    name if layer % 2 else OTHER[name]
                )  # users are next to items, and items to users
                found = tables[at](node["walks"][..., layer])
                layers.append(jnp.mean(found * node["weights"][..., layer, None], axis=-2))
            return sum(layers) / len(layers)

        return jnp.mean(jnp.stack([embed(name, x[name]) for name in sorted(x)]), axis=0)
