"""Ways to train from stored trees, each a function on a Trainer: imitation, preferences, step rewards, prefixes.

    imitate   best-path SFT
    prefer    DPO from branches and from refinements (SPaR)
    prm       a process reward model, and its use as an evaluator
    prefix    PrefixRL, Prefix-RFT and PPPO on trees that were grown from stored nodes; fronts: how much is given
    curriculum  which stored nodes some trees of a loop begin at, nearer the root as success there allows

Online tree RL is `Trainer.update`. What each accepts:

    recipe              inexact trees                       trees of other weights
    online, prefix      refused unless allow_biased         up to max_staleness updates old
    DPO, SPaR, PRM      refused unless allow_biased: their  accepted: preferences and labels are those of the
                        values decide what is better        policy that drew the tree
    SFT                 accepted: a good path is good       accepted
"""
