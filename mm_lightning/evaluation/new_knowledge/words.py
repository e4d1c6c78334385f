"""Plain words for the keys of needles: an adjective and a noun."""

from __future__ import annotations

_ADJECTIVES = """
able ample ancient ardent azure bitter blank bold brave brief bright brisk broad calm candid careful cheerful chilly
civil clean clear clever coarse cold common cosy crisp crooked curious curly damp daring deep dense distant dizzy dry
dusty eager early earnest easy elegant empty equal faint fair faithful famous fancy fast feeble fertile fierce fine firm
flat fluffy fond formal fragile frank free fresh frosty frozen gentle giant glad gleaming golden good graceful grand
grateful green grey handsome happy hardy harsh hasty heavy hollow honest huge humble hungry idle immense jolly keen kind
large late lazy lean little lively lofty lonely long loud loyal lucky mellow merry mighty mild misty modern modest
narrow neat nimble noble noisy novel odd old open orderly pale patient placid plain pleasant polite proud prudent quaint
quick quiet rapid rare ready rich ripe rough round royal rustic sacred sandy scarlet serene shady sharp shiny short shy
silent silver simple sincere sleepy slender slow small smooth snowy sober soft solemn solid sour spare spicy steady
steep stern still stormy strange strong sturdy subtle sudden sunny sweet swift tall tame tender thick thin thorny tidy
tiny tranquil true upright vast velvet vivid warm wary weary wild windy wise witty woolly worthy young
"""

_NOUNS = """
acorn anchor anvil apple apron arrow badge bakery balcony banner barley barn barrel basin basket beach beacon bell bench
berry bicycle blanket blossom boat bonnet book bottle bowl branch bread breeze brick bridge brook broom brush bucket
button cabin cabinet cable camel candle canoe canvas canyon captain carpet carriage castle cave cedar cellar chain chair
chalk chapel cherry chimney circle cliff cloak clock cloud clover coast coin collar comet compass copper coral corner
cottage cotton cradle crane cricket crown cup curtain cushion daisy dancer desert desk diamond door dragon drum eagle
echo elbow engine falcon farm feather fence fern ferry fiddle field flag flame flute forest fountain fox garden garlic
gate glacier glove goose granite grape guitar hammer harbor harp hat hedge helmet heron hill honey horn horse island
ivory jacket jar jewel jungle kettle kitchen kite ladder lake lamp lantern leaf lemon letter lily lion lizard lock
mantle maple marble market meadow melon mill mirror monkey moon mountain nest oak oar ocean olive onion orchard otter
oven owl oyster paddle palace paper parrot path pearl pebble pencil pepper piano pigeon pillow pine planet plum pocket
pond porch potato pumpkin quilt rabbit raft rain ribbon river road robin rocket roof rope rose saddle sailor salmon sand
satchel school shadow shell shepherd ship shore shovel silk sky snail spider spoon spring stable star station stone
storm stove straw stream street sugar swan table tailor teapot temple thimble thunder ticket tiger tower train tree
trumpet tulip tunnel turtle umbrella valley vase village violin wagon walnut water wheel whistle willow window winter
wolf yard
"""

ADJECTIVES = _ADJECTIVES.split()
NOUNS = _NOUNS.split()
