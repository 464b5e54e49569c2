"""The network of the graph: nodes from token states, messages along typed edges, logits of pairs.

    state_NLF -> mean over the tokens of each part -> phrase    = mean of its tokens
                                                      sentence  = mean of its tokens
                                                      statement = [trigger, clause]
                                                      pair      = [trigger, trigger, their product] + distance
              -> linear, norm -> node states of width W
              -> layers of GATv2 attention, one for each type of edge, summed at the target, residual, norm
              -> [pair, its two statements] -> hidden layer -> 2 logits

Attention is GATv2 (Brody et al., ICLR 2022, arXiv 2105.14491) by torch_geometric; that the published system
used it is a guess from its references, everything else here is ours.

Shapes: S nodes of a type, P pairs, F width of a token state, W width of a node.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmalign.core.errors import UserError
from mmalign.text.causality.config import CausalityConfig
from mmalign.text.causality.graph import FARTHEST, NODES, PARTS, RELATIONS, Graph, Relation
from mmalign.text.heads.base import mean_per_owner

Nodes = dict[str, Tensor]  # by type of node: (S, W)


class CausalityHead(nn.Module):
    """Token states and graph -> node states -> logits of pairs.

    Raises:
        UserError: a graph, and torch_geometric is not installed.
    """

    def __init__(self, state_width: int, config: CausalityConfig) -> None:
        super().__init__()
        width, last = config.width, config.layers - 1
        inputs = {"phrase": 1, "sentence": 1, "statement": 2, "pair": 3}
        self.into_node = nn.ModuleDict(
            {node: nn.Linear(inputs[node] * state_width, width) for node in NODES}
        )
        self.norm = nn.ModuleDict({node: nn.LayerNorm(width) for node in NODES})
        # One vector for each distance up to the farthest, which stands for all beyond it.
        self.distance = nn.Embedding(FARTHEST + 1, width)
        self.network: nn.ModuleDict | None = None
        if config.graph:
            layers = [GraphLayer(number == last, config) for number in range(config.layers)]
            # A dictionary because saved weights are named `network.layers.<number>`.
            self.network = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.classifier = nn.Sequential(
            nn.Linear(3 * width, width), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(width, 2)
        )
        contrasted = ("sentence", "statement", "pair") if config.contrast is not None else ()
        self.into_contrast = nn.ModuleDict({node: nn.Linear(width, width) for node in contrasted})

    def nodes(self, state_NLF: Tensor, graph: Graph) -> Nodes:
        state_MF = state_NLF.flatten(0, 1)
        part = {}
        for name in PARTS:
            position_M, part_M = graph.tokens[name]
            # A part without any token has the state zero.
            part[name] = mean_per_owner(state_MF[position_M], part_M, graph.counts[name])
        first, second = part["trigger"][graph.events_2P]
        inputs = {
            "phrase": part["phrase"],
            "sentence": part["sentence"],
            "statement": torch.cat([part["trigger"], part["clause"]], dim=-1),
            "pair": torch.cat([first, second, first * second], dim=-1),
        }
        nodes: Nodes = {node: self.into_node[node](value) for node, value in inputs.items()}
        nodes["pair"] = nodes["pair"] + self.distance(graph.distance_P)
        nodes = {node: self.norm[node](state) for node, state in nodes.items()}
        if self.network is not None:
            for layer in self.network["layers"].children():
                nodes = layer(nodes, graph.edges)
        return nodes

    def logits(self, nodes: Nodes, graph: Graph) -> Tensor:
        """(P, 2): not causal, causal."""
        first, second = nodes["statement"][graph.events_2P]
        logits_P2: Tensor = self.classifier(torch.cat([nodes["pair"], first, second], dim=-1))
        return logits_P2


class GraphLayer(nn.Module):
    """One exchange of messages; types of nodes that no edge of the layer ends in are not changed.

    Each type of edge has its own attention; a node takes the sum over the types that end in it.
    """

    def __init__(self, is_last: bool, config: CausalityConfig) -> None:
        super().__init__()
        try:
            from torch_geometric.nn import GATv2Conv, HeteroConv
        except ImportError:
            raise UserError(
                "causality.graph: needs torch_geometric; install it with `pip install "
                "'mmalign[finetune]'`, or set causality.graph=false"
            ) from None
        # Nothing reads what edges into other nodes would change in the last layer.
        read = ("statement", "pair") if is_last else NODES
        self.relations = tuple(one for one in RELATIONS if one[2] in read)
        width, each = config.width, config.width // config.heads
        convs = {
            one: GATv2Conv((width, width), each, heads=config.heads, add_self_loops=False)
            for one in self.relations
        }
        with warnings.catch_warnings():
            # In the last layer nothing ends in phrases and sentences, on purpose.
            warnings.filterwarnings("ignore", message="There exist node types")
            self.attention = HeteroConv(convs, aggr="sum")
        targets = sorted({target for _, _, target in self.relations})
        self.norm = nn.ModuleDict({node: nn.LayerNorm(width) for node in targets})
        self.dropout = config.dropout

    def forward(self, nodes: Nodes, edges: dict[Relation, Tensor]) -> Nodes:
        messages = self.attention(nodes, {one: edges[one] for one in self.relations})
        changed = {}
        for node, message in messages.items():
            mixed = F.dropout(F.gelu(message), self.dropout, self.training)
            changed[node] = self.norm[node](nodes[node] + mixed)
        return {**nodes, **changed}
