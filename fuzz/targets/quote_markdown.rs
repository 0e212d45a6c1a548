//! Any bytes as code in a line of Markdown, and in a block: cmark takes both for code with the very text, and for nothing else.
#![no_main]

mod judge;

use codchifs::quote;
use libfuzzer_sys::fuzz_target;

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn judged(names: &[Vec<u8>]) -> Result<(), String> {
    const TEXT: &str = "    <text xml:space=\"preserve\">";
    let (mut page, mut expected) = (String::new(), String::new());
    for name in names {
        let (code, word) = (quote::code(name), quote::word(name));
        page += &format!("a {code} b\n\n{}\n\n", quote::fenced("sh", &word));
        let shown = if name.is_empty() { "  ".into() } else { quote::name(name).to_string() };
        expected += &format!(
            "  <paragraph>\n{TEXT}a </text>\n    <code xml:space=\"preserve\">{}</code>\n{TEXT} b</text>\n  </paragraph>\n  \
             <code_block info=\"sh\" xml:space=\"preserve\">{}\n</code_block>\n",
            escaped(&shown),
            escaped(word.trim_end())
        );
    }
    let xml = judge::fed("cmark", &["-t", "xml"], page.as_bytes())?;
    let xml = String::from_utf8(xml).map_err(|why| why.to_string())?;
    let (_, document) = xml.split_once("<document").ok_or("no document")?;
    let (_, document) = document.split_once(">\n").ok_or("no document")?;
    match document.strip_suffix("</document>\n") == Some(&expected) {
        true => Ok(()),
        false => Err("cmark reads something else".into()),
    }
}

fuzz_target!(|name: &[u8]| if !name.contains(&0) {
    judge::batched(name, judged);
});
