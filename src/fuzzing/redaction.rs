//! **Pure.** The rule of secrets: a token comes out nowhere.

use crate::{
    Resolver, ResolverBuilder,
    consul::{http::reading, token::Token},
};

/// Any token that a header carries, and around it any text: whatever is made of the token,
/// says that it is wrong, or repeats what an agent said, prints without it. The token is made
/// of the first half of the input; the second half is what stands around it.
pub fn redaction(bytes: &[u8]) {
    let (secret, around) = bytes.split_at(bytes.len().min(64) / 2);
    let graphic = |byte: &u8| char::from(b'!' + byte % 94);
    // Long enough that no text has it by chance.
    let secret = format!("c4n4ry{}x", secret.iter().map(graphic).collect::<String>());
    let hidden = |what: &str, text: &str| {
        // As it is, and as a text in a text would have it.
        let quoted = secret.escape_debug().to_string();
        assert!(
            !text.contains(&secret) && !text.contains(&quoted) && !text.contains("c4n4ry"),
            "{what} tells the token: {text}"
        );
    };
    let token = Token::parse(&secret).expect("a token that a header carries");
    hidden("its own print", &format!("{token:?} {token:#?}"));

    let builder = ResolverBuilder::default().dns("none").token(&secret);
    hidden("a builder", &format!("{builder:?}"));
    let resolver = builder.build().expect("plain settings");
    printed(&resolver, &hidden);

    // Wrong where it stands: with a blank in it, or where an address belongs.
    let blank = format!("{secret} {secret}");
    let user = format!("http://user:{secret}@127.0.0.1:8500");
    for wrong in [
        ResolverBuilder::default().token(&blank),
        ResolverBuilder::default().http(&user),
    ] {
        hidden("a builder", &format!("{wrong:?}"));
        match wrong.build() {
            Ok(resolver) => printed(&resolver, &hidden),
            Err(error) => hidden("an error", &format!("{error} {error:?}")),
        }
    }

    // An agent, or who stands between, that repeats it.
    let mut around = String::from_utf8_lossy(around).into_owned();
    while around.contains("c4n4ry") {
        // What a fuzzer has learned is no leak.
        around = around.replace("c4n4ry", "");
    }
    let middle = (around.char_indices().nth(around.chars().count() / 2)).map_or(0, |(at, _)| at);
    let (before, after) = around.split_at(middle);
    let said = format!("{before}{secret}{after}{secret}");
    for status in [400, 403, 429, 500] {
        let trouble = reading::refusal(status, said.as_bytes(), token.as_ref(), None);
        let told = format!("{trouble} {trouble:?} {}", trouble.outcome());
        hidden("what an agent said", &told);
        assert!(!trouble.to_string().contains(char::is_control), "{told:?}");
    }
}

fn printed(resolver: &Resolver, hidden: &impl Fn(&str, &str)) {
    hidden("a resolver", &format!("{resolver:?} {resolver:#?}"));
    hidden("its metrics", &resolver.metrics().to_string());
    hidden("its status", &format!("{:?}", resolver.status()));
    hidden("what it has cached", &format!("{:?}", resolver.cached(10)));
}
