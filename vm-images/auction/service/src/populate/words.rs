//! Words for names and descriptions.

use super::random::Random;

const FIRST_NAMES: [&str; 12] = [
    "Ada", "Alan", "Barbara", "Edsger", "Frances", "Grace", "Jim", "Leslie", "Nancy", "Niklaus",
    "Radia", "Tony",
];
const LAST_NAMES: [&str; 12] = [
    "Baker", "Carter", "Cooper", "Fisher", "Gardener", "Mason", "Miller", "Potter", "Sawyer",
    "Smith", "Taylor", "Weaver",
];
const QUALITIES: [&str; 16] = [
    "antique", "blue", "carved", "curious", "foldable", "fragile", "golden", "heavy", "little",
    "new", "old", "rare", "round", "signed", "used", "wooden",
];
const THINGS: [&str; 24] = [
    "album", "atlas", "basket", "bell", "book", "camera", "chair", "clock", "coat", "coin", "doll",
    "guitar", "kettle", "lamp", "mirror", "necklace", "painting", "radio", "ring", "stamp",
    "table", "ticket", "vase", "watch",
];
const FILLERS: [&str; 16] = [
    "and",
    "as seen",
    "bought in spring",
    "comes with a box",
    "from the attic",
    "has a scratch",
    "in good shape",
    "kept dry",
    "never used",
    "of its kind",
    "ready to ship",
    "sold as it is",
    "with care",
    "with papers",
    "without warranty",
    "worth a look",
];

pub(super) fn first_name(random: &mut Random) -> &'static str {
    random.pick(&FIRST_NAMES)
}

pub(super) fn last_name(random: &mut Random) -> &'static str {
    random.pick(&LAST_NAMES)
}

/// Something to sell.
pub(super) fn thing(random: &mut Random) -> String {
    format!("{} {}", random.pick(&QUALITIES), random.pick(&THINGS))
}

/// A text of up to so many phrases.
pub(super) fn description(random: &mut Random, phrases_max: i64) -> String {
    let mut text = thing(random);
    for _ in 0..random.below(phrases_max) {
        text.push_str(", ");
        text.push_str(random.pick(&FILLERS));
    }
    text.push('.');
    text
}
