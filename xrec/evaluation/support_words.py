"""The English words that the lexical checker knows: which say nothing, deny, mean the same, or are opposites."""

# Words of every explanation, whoever and whatever it is about.
FRAMING = """
user users person people individual individuals someone anyone everyone customer customers guest guests visitor
visitors reader readers fan fans lover lovers enthusiast enthusiasts those enjoy enjoys enjoyed enjoying like likes
liked love loves loved loving appreciate appreciates appreciated value values valued prefer prefers praise praises
praised appeal appeals appealing please pleases suit suits suited want wants need needs look looks looking seek seeks
care cares tend tends visit visits visited buy bought buying purchase choose chooses chose chosen read reading item
items place places spot business businesses restaurant restaurants shop book books novel product products thing things
offer offers offering offered provide provides provided providing have has make makes making made feature features
featuring include includes including because due reason reasons given known find finds found mention mentions
mentioned review reviews reviewer reviewed experience experiences option options variety choice choices likely
especially particularly various also many kind sort come comes go goes get gets got serve serves served would could
should may might must recommend recommends recommended easy sensible often draw draws similar based expect much very
return returns returning regular regulars become becomes gladly somewhere elsewhere deserves deserve personally really
quite just
"""
# What denies the words after it in its clause, or, with none after it, those before.
DENIALS = """
not no never without cannot neither nor hardly barely lack lacks lacked lacking none nothing nobody nowhere absence
absent unlikely isn aren wasn weren doesn don didn hasn haven hadn won wouldn couldn shouldn isnt arent wasnt werent
doesnt dont didnt cant wont wouldnt
"""
# Where a denial stops, beside punctuation: a reason that follows is meant.
SCOPE_END = "but however although though because due since yet while despite"
# A clause's verdict: does it say that somebody likes something, or the contrary.
LIKING = """
enjoy enjoys enjoyed enjoying like likes liked love loves loved appreciate appreciates appreciated value values valued
praise praises praised appeal appeals appealing please suit suits recommend recommended delight delighted happy known
"""
DISLIKING = """
dislike dislikes disliked hate hates hated avoid avoids avoided regret regrets regretted disappoint disappoints
disappointed disappointing disappointment complain complains complained criticize criticizes criticized
"""
# One concept a line: words that mean much the same, a bar, and their opposites.
CONCEPTS = """
friendly welcoming hospitable courteous polite kind warm | rude unfriendly hostile impolite unwelcoming surly dismissive
fast quick speedy prompt efficient swift | slow sluggish inefficient delayed
delicious tasty flavorful flavourful yummy scrumptious mouthwatering savory | bland tasteless flavorless unappetizing
fresh | stale rotten frozen wilted
clean spotless sanitary tidy hygienic | dirty filthy messy unsanitary grimy
affordable cheap inexpensive reasonable budget | expensive overpriced pricey unaffordable
generous large big huge ample plentiful hearty | small tiny skimpy stingy meager
spacious roomy | cramped tight narrow
quiet calm peaceful relaxed relaxing tranquil serene | noisy loud chaotic hectic
cozy comfortable comfy inviting intimate | uncomfortable uninviting
attentive helpful responsive caring | inattentive unhelpful neglectful indifferent
knowledgeable skilled professional expert experienced | unprofessional unskilled incompetent clueless
authentic genuine traditional | inauthentic fake
convenient accessible | inconvenient inaccessible remote
excellent good great nice best amazing outstanding fantastic wonderful superb | bad terrible awful horrible poor worst
beautiful lovely attractive gorgeous stunning charming cute | ugly unattractive drab
lively vibrant bustling energetic | dead lifeless deserted dull
unique original creative inventive innovative | unoriginal generic ordinary cliched derivative
diverse varied wide extensive vast | limited narrow sparse
captivating engaging gripping compelling engrossing riveting enthralling intriguing fascinating | boring tedious dull
suspenseful thrilling exciting | predictable unexciting
relatable believable realistic | unrelatable unbelievable unrealistic
heartwarming touching uplifting | depressing bleak
satisfying fulfilling enjoyable | unsatisfying disappointing
healthy nutritious | unhealthy greasy
sweet | bitter sour
hot warm | cold chilly
spicy | mild
modern updated contemporary | outdated dated
crispy crunchy | soggy
tender juicy moist | tough dry
easy simple effortless | difficult complicated confusing
safe secure | unsafe dangerous
strong rich deep | weak shallow thin
early | late
open | closed
outdoor outdoors outside | indoor indoors inside
free complimentary | paid
long lengthy | short brief
high | low
new | old
light | heavy dark
natural | artificial
popular beloved | unpopular
casual informal | formal
food cuisine dish dishes meal meals fare
staff employee employees server servers waiter waiters waitress waitstaff personnel
atmosphere ambiance ambience vibe setting environment
price prices pricing priced cost costs
story stories storyline plot narrative tale tales storytelling
character characters protagonist protagonists
hero heroine heroes heroines
drink drinks beverage beverages
beer beers ale ales
portion portions serving servings
location located
selection range assortment array
flavor flavors flavour flavours taste tastes
ingredient ingredients produce
decor interior furnishings
author writer
series saga trilogy
romantic romance romances | unromantic
relationship relationships bond bonds
funny humorous witty hilarious comedic humor wit
emotional emotion emotions moving
suspense tension
mystery mysteries whodunit
twist twists turn turns
children kids child family families
dessert desserts sweets
coffee espresso latte
pastry pastries
pizza pizzas slice slices
"""
# Words of scikit-learn's list of stop words that say something.
NO_STOP_WORDS = "amount bill cry detail empty fill fire full interest mill sincere system thick thin"
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve"
