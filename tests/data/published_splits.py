"""The unseen classes that GRIP published: (set, split seed, number of seen classes) to names."""

UNSEEN = {
    ("dtd", 500, 29): (
        "blotchy; smeared; cobwebbed; cracked; crosshatched; stratified; striped; swirly; woven; freckled; "
        "frilly; grooved; honeycombed; interlaced; lacelike; marbled; paisley; porous "
    ),
    ("dtd", 0, 29): (
        "banded; blotchy; bubbly; spiralled; sprinkled; cobwebbed; cracked; stained; crystalline; stratified; "
        "striped; flecked; woven; zigzagged; interlaced; lacelike; marbled; matted "
    ),
    ("dtd", 200, 29): (
        "blotchy; bumpy; stained; cobwebbed; cracked; striped; crystalline; swirly; fibrous; flecked; veined; "
        "frilly; gauzy; grid; interlaced; meshed; paisley; perforated "
    ),
    ("eurosat", 500, 6): ("river; forest; permanent crop land; residential buildings or homes or apartments "),
    ("eurosat", 0, 6): (
        "annual crop land; highway or road; pasture land; residential buildings or homes or apartments "
    ),
    ("eurosat", 200, 6): (
        "annual crop land; lake or sea; brushland or shrubland; industrial buildings or commercial buildings "
    ),
    ("resisc45", 500, 27): (
        "airport; ship; snowberg; chaparral; church; circular farmland; stadium; terrace; forest; freeway; "
        "golf course; harbor; industrial area; intersection; lake; medium residential; overpass; rectangular "
        "farmland "
    ),
    ("resisc45", 0, 27): (
        "airplane; airport; roundabout; basketball court; runway; ship; chaparral; church; stadium; cloud; "
        "terrace; desert; wetland; intersection; lake; medium residential; mobile home park; overpass "
    ),
    ("resisc45", 200, 27): (
        "airport; beach; ship; chaparral; church; sparse residential; cloud; stadium; dense residential; "
        "desert; tennis court; freeway; golf course; ground track field; intersection; mountain; overpass; "
        "palace "
    ),
    ("mnist", 500, 6): ("8; 1; 6; 7 "),
    ("mnist", 0, 6): ("0; 3; 5; 7 "),
    ("mnist", 200, 6): ("0; 9; 2; 4 "),
    ("flowers102", 500, 63): (
        "canterbury bells; snapdragon; spear thistle; yellow iris; globe flower; purple coneflower; peruvian "
        "lily; balloon flower; giant white arum lily; artichoke; sweet william; garden phlox; alpine sea "
        "holly; great masterwort; daffodil; sword lily; marigold; buttercup; bishop of llandaff; gaura; "
        "geranium; pink and yellow dahlia; cautleya spicata; japanese anemone; black-eyed susan; "
        "osteospermum; windflower; gazania; azalea; water lily; thorn apple; lotus; toad lily; columbine; "
        "tree mallow; hippeastrum; bee balm; bromelia; trumpet creeper "
    ),
    ("flowers102", 0, 63): (
        "globe thistle; king protea; yellow iris; giant white arum lily; fire lily; pincushion flower; corn "
        "poppy; sweet william; love in the mist; cape flower; great masterwort; lenten rose; bolero deep "
        "blue; marigold; buttercup; common dandelion; geranium; orange dahlia; silverbush; californian poppy; "
        "osteospermum; bearded iris; tree poppy; gazania; azalea; water lily; lotus; toad lily; clematis; "
        "columbine; tree mallow; magnolia; cyclamen; watercress; hippeastrum; mallow; bromelia; blanket "
        "flower; trumpet creeper "
    ),
    ("flowers102", 200, 63): (
        "hard-leaved pocket orchid; moon orchid; bird of paradise; colt's foot; yellow iris; globe flower; "
        "purple coneflower; fire lily; fritillary; red ginger; grape hyacinth; prince of wales feathers; "
        "stemless gentian; garden phlox; love in the mist; ruby-lipped cattleya; sword lily; wallflower; "
        "petunia; wild pansy; pelargonium; bishop of llandaff; gaura; geranium; pink and yellow dahlia; "
        "japanese anemone; windflower; gazania; rose; passion flower; anthurium; desert-rose; tree mallow; "
        "canna lily; bee balm; bougainvillea; bromelia; blanket flower; trumpet creeper "
    ),
    ("fgvc_aircraft", 500, 62): (
        "737-200; 737-500; 747-100; 747-400; 757-200; 757-300; 767-300; 767-400; 777-200; A330-300; A340-200; "
        "A340-500; An-12; Boeing 717; C-130; Cessna 525; Cessna 560; DC-8; DC-9-30; DH-82; DHC-6; DHC-8-100; "
        "DHC-8-300; Dornier 328; E-190; E-195; Embraer Legacy 600; Eurofighter Typhoon; F-16A-B; Fokker 50; "
        "Fokker 70; Gulfstream V; MD-11; Metroliner; Model B200; Saab 2000; Tornado; Tu-154 "
    ),
    ("fgvc_aircraft", 0, 62): (
        "737-900; 747-300; 757-200; 777-200; 777-300; A300B4; A320; A340-200; A340-600; ATR-72; BAE 146-200; "
        "BAE-125; Cessna 172; Cessna 525; Cessna 560; CRJ-200; DH-82; DHC-1; E-170; E-190; E-195; EMB-120; "
        "ERJ 135; ERJ 145; F-16A-B; Fokker 50; Global Express; Gulfstream V; Il-76; L-1011; MD-11; MD-87; "
        "MD-90; Metroliner; Spitfire; Tornado; Tu-134; Tu-154 "
    ),
    ("fgvc_aircraft", 200, 62): (
        "727-200; 737-600; 737-700; 747-200; 757-200; 757-300; 767-200; 777-300; A310; A318; A319; A321; "
        "A330-200; A340-500; A340-600; ATR-42; C-130; Cessna 208; CRJ-700; CRJ-900; DC-6; DC-8; DC-9-30; "
        "DH-82; DHC-6; DHC-8-300; EMB-120; Embraer Legacy 600; ERJ 145; F-A-18; Fokker 100; Global Express; "
        "Il-76; L-1011; Metroliner; Saab 2000; Tornado; Tu-154 "
    ),
}
