"""Tokenizers: what tokens they have, and which row of one is which row of another.

An example. A base had six tokens; post-training renamed one of them and added two. The new base has
six tokens as well: one is its own, and two are in other rows. "-" is no token::

    row   source base   post          new base      output        which changes by
     0    <s>           <s>           <s>           <s>           delta of row 0
     1    the           the           cat           cat           delta of row 2
     2    cat           cat           the           the           delta of row 1
     3    dog           dog           bird          bird          nothing
     4    <spare>       <tool>        <spare>       <tool>        delta of row 4
     5    run           run           run           run           delta of row 5
     6    -             <think>       -             <think>       value of row 6
     7    -             </think>      -             </think>      value of row 7

Tokens keep the new base's row of the same string: ``cat`` is in row 1 and changes as post changed
row 2. ``bird`` is the new base's own and stays; ``dog`` is lost. ``<spare>`` has become ``<tool>``
in post, so it does in the output. The two that post added come after the new base's last row, with
post's own rows as values. ``matching`` finds this out, ``rows`` says it by row, and ``added``
writes it into the tokenizer's files.
"""
