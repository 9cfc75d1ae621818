"""Preferences from people: pairs of responses, a page to compare them on, and a store that loses no answer.

- ``pairs``      files of pairs to label, and K choose 2 of sampled responses
- ``answers``    what someone says about a pair
- ``tables``     what the store holds; ``migrations`` brings an older store to it
- ``annotators`` who labels: names, roles, tokens
- ``store``      one committed transaction per label, append-only history
- ``assignment`` who sees which pair, on which sides, and for how long it is theirs
- ``instructions`` what annotators are told, and under which version each label was given
- ``statistics`` agreement, side bias, throughput
- ``exchange``   export and import: ours, Argilla's, Label Studio's
- ``judging``    labels by a judge instead of people
- ``app``        the page
"""
