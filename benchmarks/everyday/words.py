"""What the everyday training prompts are about."""

from __future__ import annotations

TOPICS = (
    *("gravity", "volcanoes", "rainbows", "electricity", "magnets", "the human heart", "bees", "whales", "dinosaurs"),
    *("the water cycle", "earthquakes", "black holes", "the moon", "atoms", "DNA", "bacteria", "solar panels", "sound"),
    *("the ocean", "glaciers", "evolution", "the immune system", "nuclear power", "rockets", "robots", "computers"),
    *("the internet", "artificial intelligence", "bicycles", "trains", "bread", "coffee", "chocolate", "cheese", "tea"),
    *("gardening", "photography", "chess", "football", "swimming", "yoga", "painting", "music", "jazz", "dancing"),
    *("ancient Egypt", "the Roman Empire", "the Silk Road", "the Renaissance", "the Cold War", "the French Revolution"),
    *("the Industrial Revolution", "the Vikings", "samurai", "the moon landing", "the Great Wall of China", "castles"),
    *(
        "philosophy",
        "ethics",
        "capitalism",
        "inflation",
        "taxes",
        "insurance",
        "climate change",
        "recycling",
        "deserts",
    ),
    *("rainforests", "mountains", "rivers", "cities", "bridges", "houses", "friendship", "love", "courage", "honesty"),
    *("patience", "time", "dreams", "memory", "happiness", "anger", "fear", "kindness", "teamwork", "leadership"),
    *("dogs", "cats", "horses", "birds", "elephants", "wolves", "butterflies", "sharks", "owls", "trees", "flowers"),
    *("winter", "summer", "the night sky", "storms", "a small village", "a lost letter", "an empty train", "a garden"),
)

PLACES = (
    *(
        "Paris",
        "Tokyo",
        "Cairo",
        "Berlin",
        "Nairobi",
        "Toronto",
        "Madrid",
        "Oslo",
        "Lima",
        "Sydney",
        "Mumbai",
        "Vienna",
    ),
    *("Prague", "Dublin", "Seoul", "Athens", "Boston", "Chicago", "Havana", "Istanbul"),
)

PEOPLE = (
    *("Anna Berg", "James Carter", "Li Wei", "Sofia Rossi", "Omar Haddad", "Grace Miller", "Peter Novak", "Emma Clark"),
    *(
        "David Kim",
        "Laura Silva",
        "Henry Ward",
        "Nina Petrov",
        "Samuel Okoye",
        "Julia Stein",
        "Mark Evans",
        "Rosa Diaz",
    ),
)

JOBS = (
    *(
        "teacher",
        "baker",
        "pilot",
        "doctor",
        "gardener",
        "detective",
        "librarian",
        "carpenter",
        "photographer",
        "lawyer",
    ),
    *(
        "scientist",
        "musician",
        "fisherman",
        "journalist",
        "firefighter",
        "architect",
        "tailor",
        "sailor",
        "judge",
        "nurse",
    ),
)

THINGS = (
    *(
        "a wool scarf",
        "a coffee mug",
        "a desk lamp",
        "a tent",
        "a pair of headphones",
        "a bicycle helmet",
        "a notebook",
    ),
    *(
        "an electric kettle",
        "a garden hose",
        "a board game",
        "a rain jacket",
        "a water bottle",
        "a phone case",
        "a rug",
    ),
)

GOALS = (
    *(
        "learn a new language",
        "run a marathon",
        "eat less sugar",
        "make new friends",
        "read more books",
        "stop smoking",
    ),
    *(
        "plan a wedding",
        "train a puppy",
        "start a small business",
        "write a resume",
        "study for an exam",
        "paint a room",
    ),
    *("clean a kitchen", "grow tomatoes", "fix a flat tire", "manage stress", "wake up early", "speak in public"),
    *("choose a laptop", "organise a party", "learn the guitar", "meditate", "lose weight", "move to another city"),
)

TASKS = (
    *("sorts a list of numbers", "finds the largest number in a list", "counts the vowels in a string"),
    *("checks if a word is a palindrome", "computes the factorial of a number", "removes duplicates from a list"),
    *(
        "merges two dictionaries",
        "reads a file line by line",
        "converts Celsius to Fahrenheit",
        "sums the digits of a number",
    ),
    *("prints the Fibonacci sequence", "counts words in a text", "finds common elements of two lists"),
    *(
        "generates a random password",
        "computes the average of a list",
        "flattens a nested list",
        "validates an email address",
    ),
    *("downloads a web page", "writes data to a JSON file", "computes the distance between two points"),
)

CONCEPTS = (
    *("a for loop", "a dictionary", "a class", "a lambda function", "an exception", "a decorator", "a generator"),
    *(
        "a REST API",
        "a hash table",
        "a linked list",
        "binary search",
        "a database index",
        "a JOIN in SQL",
        "Git",
        "CSS",
    ),
    *("HTML", "a pointer in C", "an interface in Java", "a thread", "a unit test"),
)

SENTENCES = (
    *("The book is on the table.", "My sister lives in a small town.", "What time is it?", "I do not understand."),
    *("Thank you for your help.", "We are going to the beach tomorrow.", "The children are playing outside."),
    *("How much does this cost?", "I have lost my keys.", "Please open the window.", "She works in a hospital."),
    *("The meeting starts at nine.", "I like to read in the evening.", "Can you help me?", "It is raining again."),
    *("The soup is too hot.", "He bought a new car last week.", "Where can I find a pharmacy?", "Happy birthday!"),
)

LANGUAGES = ("French", "Spanish", "German", "Italian", "Portuguese", "Dutch")
