"""Data sets: where they lie, how they are read, and how they are split between owner, attacker and test.

datasets    facts of the built-in sets: shape, classes, constants, licence
splits      labelled samples, and who holds which part of them
text        texts as ids of words, and the owner's vocabulary

shards      which Parquet files make a part: one complete generation
layouts     how any set may lie under the root: named files, Parquet, folders of classes
archives    how each built-in set may lie: the above, and what its authors publish
pictures    one encoded picture to 8-bit pixels, exactly or refused
formats     IDX, CIFAR's records and picture files, as arrays that know where their rows come from
parquet     columns of Parquet files, as such arrays
checks      what inputs, labels and groups must be, whoever reads them

sources     data sets by key: finding, loading, adding one's own
cache       decoded arrays on disk, decoded once per machine
fetch       downloading, only when asked to
inventory   which sets are here, and whether they are whole
other       an attacker's other data: pairs of sets, fitting, noise
"""
