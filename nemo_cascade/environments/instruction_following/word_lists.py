"""Closed lists that IFBench's rules look into."""

# The English stop words of nltk's corpus of that name, by what they are, but those with an apostrophe.
STOP_WORDS = frozenset(
    # pronouns
    "i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself "
    "it its itself they them their theirs themselves what which who whom this that these those "
    # forms of be, have, do, and of the modal verbs
    "am is are was were be been being have has had having do does did doing can will just don should now "
    # articles, conjunctions and prepositions
    "a an the and but if or because as until while of at by for with about against between into through during before "
    "after above below to from up down in out on off over under "
    # adverbs and quantities
    "again further then once here there when where why how all any both each few more most other some such no nor not "
    "only own same so than too very "
    # what an apostrophe leaves
    "s t d ll m o re ve y ain aren couldn didn doesn hadn hasn haven isn ma mightn mustn needn shan shouldn "
    "wasn weren won wouldn".split()
)
PRONOUNS = frozenset(
    "i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she "
    "her hers herself it its itself they them their theirs themselves".split()
)
CONJUNCTIONS = frozenset("and but for nor or so yet".split())
# The names that the instruction count:person_names itself lists.
PERSON_NAMES = (
    "Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander Amelia Benjamin "
    "Harper Leo Zoe Daniel Chloe Samuel Lily Matthew Grace Owen Abigail Gabriel Ella Jacob Scarlett Nathan Victoria "
    "Elijah Layla Nicholas Audrey David Hannah Christopher Penelope Thomas Nora Andrew Aria Joseph Claire Ryan Stella "
    "Jonathan"
).split()
# Capitals of Europe north of 45 degrees, from north to south, as custom:european_capitals_sort expects them.
NORTHERN_CAPITALS = (
    "Reykjavik Helsinki Oslo Tallinn Stockholm Riga Moscow Copenhagen Vilnius Minsk Dublin Berlin Amsterdam Warsaw "
    "London Brussels Prague Luxembourg Paris Vienna Bratislava Budapest Vaduz Chisinau Bern Ljubljana Zagreb"
).split()
