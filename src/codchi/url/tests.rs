use super::*;

fn parse(text: &str) -> ModuleUrl {
    text.parse().unwrap_or_else(|fault| panic!("{text}: {fault}"))
}

#[test]
fn shown_without_its_token() {
    for (text, shown) in [
        ("file://docs/codchi?#nixosModules.base", "file://docs/codchi?#nixosModules.base"),
        ("github://github.com/a/b", "github://github.com/a/b?#nixosModules.default"),
        ("https://h/r?token=hunter2&ref=x#a.b", "https://h/r?token=***&ref=x#a.b"),
        ("https://me:hunter2@h/r?#a.b", "https://***@h/r?#a.b"),
        ("ssh://git@h/r?commit=1#a.b", "ssh://***@h/r?commit=1#a.b"),
    ] {
        let url = parse(text);
        assert_eq!(url.to_string(), shown);
        assert!(!format!("{url:?}").contains("hunter2"));
    }
}

#[test]
fn knows_its_token() {
    for (text, token) in [
        ("https://h/r?token=T#a", true),
        ("https://T@h/r?#a", true),
        ("ssh://git@h/r?#a", false),
        ("ssh://git:T@h/r?#a", true),
        ("https://h/r?token=#a", false),
        ("file://x?#a", false),
        // A name that everybody has is no credential, and a forge gets none at all.
        ("ssh://h/r?token=git#a", false),
        ("ssh://h/r?token=%67it#a", false),
        ("https://git@h/r?#a", false),
        ("https://h/r?token=git#a", false),
        ("github://h/o/r?token=T#a", false),
        ("ssh://alice-1@h/r?#a", false),
        ("ssh://h/r?token=git:T#a", true),
        ("ssh://h/r?token=alice#a", true),
        ("ssh://ghp_0123456789abcdef@h/r?#a", true),
        ("ssh://glpat-0123456789abcdefghij@h/r?#a", true),
        ("ssh://0123456789abcdef0123456789abcdef01234567@h/r?#a", true),
        ("ssh://git%3AT@h/r?#a", true),
        ("ssh://@h/r?#a", false),
    ] {
        let url = parse(text);
        assert_eq!(url.has_token(), token, "{text}");
        assert!(!url.without_token().has_token(), "{text}");
    }
    assert_eq!(parse("ssh://git@h/r").without_token(), parse("ssh://git@h/r"));
}

#[test]
fn git_urls() {
    for (text, url) in [
        ("file:///a b/ü%?#x", "file:///home/codchi/a%20b/%C3%BC%25"),
        ("file:///a%20b/%C3%BC%25?#x", "file:///home/codchi/a%20b/%C3%BC%25"),
        ("https://h:8/r/s.git?token=a/b@c%40#x", "https://a%2Fb%40c%40@h:8/r/s.git"),
        ("ssh://git@h/a \"b\"#x", "ssh://git@h/a%20%22b%22"),
        ("http://h/r%20s?#x", "http://h/r%20s"),
    ] {
        assert_eq!(parse(text).git_url().as_deref(), Some(url));
    }
}

#[test]
fn refuses_in_words_without_the_text() {
    for (text, fault) in [
        ("", "its URL has no scheme such as https://"),
        ("hunter2", "its URL has no scheme such as https://"),
        (
            "ftp://h/hunter2",
            "its URL has the unknown scheme \"ftp\", codchi knows file, github, gitlab, sourcehut, \
             http, https and ssh",
        ),
        (
            "hunter2@https://h/r",
            "its URL has the unknown scheme \"?\", codchi knows file, github, gitlab, sourcehut, \
             http, https and ssh",
        ),
        (
            "https://hunter2?#a",
            "its URL must name a host and a repository, as in SCHEME://HOST/REPOSITORY",
        ),
        (
            "github://github.com/hunter2?#a",
            "its URL must name an owner and a repository, as in SCHEME://HOST/OWNER/REPOSITORY",
        ),
        (
            "github://h/o/r/main?ref=hunter2#a",
            "its URL names a branch twice, in its path and in its query",
        ),
        (
            "https://h/r?ref=hunter2 x#a",
            "its URL names a branch or tag that git allows no such name for (ref=)",
        ),
        (
            "file://%2e%2e/hunter2#a",
            "its URL must be a path below /home/codchi, without '..', as in file://PROJECT",
        ),
        (
            "file://x?#hunter2..b",
            "its URL must end in an attribute path, as in #nixosModules.default",
        ),
    ] {
        let found = text.parse::<ModuleUrl>().unwrap_err();
        assert_eq!(found.to_string(), fault);
        assert!(!format!("{found:?}").contains("hunter2"));
    }
}

#[test]
fn attribute_paths() {
    for (text, path) in [
        ("file://x", vec!["nixosModules", "default"]),
        ("file://x?#", vec!["nixosModules", "default"]),
        ("file://x?#codchiModules.a-b", vec!["codchiModules", "a-b"]),
        ("file://x?#a.\"b.c\"", vec!["a", "b.c"]),
    ] {
        assert_eq!(parse(text).attribute_path(), path);
    }
}

#[test]
fn names_of_branches() {
    for name in
        ["main", "feat/x", "a@b", "@a", "ü", "a.b-_", "refs/tags/v1", "${x}\"", "-a", "100%"]
    {
        assert!(is_ref_name(name), "{name}");
    }
    for name in [
        "", "a b", "/a", "a/", "a//b", ".a", "a/.b", "a..b", "a.", "a.lock", "a.lock/b", "a~1",
        "a^", "a:b", "a?", "a*", "[a", "a\\b", "a@{1}", "@", "a\tb", "a\n", "a\0", "a\u{7f}",
    ] {
        assert!(!is_ref_name(name), "{name:?}");
    }
    assert!("github://h/o/r?ref=a%20b#".parse::<ModuleUrl>().is_err());
    assert!("github://h/o/r/a b#".parse::<ModuleUrl>().is_err());
}

#[test]
fn escapes() {
    assert_eq!(encode("a%20%zz%", PATH, true), "a%20%25zz%25");
    assert_eq!(decode("a%20%zz%C3%BC%"), "a %zzü%");
    assert_eq!(decode("%FF"), "%FF");
    assert_eq!(strip_login("git+https://a:b@h/x@y"), "git+https://h/x@y");
    assert_eq!(strip_login("ssh://git@h/x"), "ssh://git@h/x");
}

#[test]
fn keeps_of_a_url_only_what_is_no_credential() {
    let narrow = "?ref=main&rev=1&dir=a/b&narHash=sha256-a%3D&name=x&submodules=1&shallow=1&lfs=1\
                  &allRefs=1&exportIgnore=1&lastModified=1&revCount=1&host=h";
    for (url, stripped) in [
        ("git+https://u:P@h/driver?token=T&ref=main", "git+https://h/driver?ref=main"),
        ("git+https://h/driver?ref=main&private_token=T#a.b", "git+https://h/driver?ref=main#a.b"),
        ("https://h/a.tgz?private_token=T&access_token=T", "https://h/a.tgz"),
        ("https://h/a.tgz#a.b", "https://h/a.tgz#a.b"),
        ("https://h/a.tgz#token=T", "https://h/a.tgz"),
        ("https://h/a.tgz?T#token=in-no-query", "https://h/a.tgz"),
        ("github:o/r?TOKEN=T&dir=x", "github:o/r?dir=x"),
        ("github:o/r?host=T@h", "github:o/r?host=h"),
        ("github:o/r?host=u:T%40h&%72ef=T", "github:o/r?host=h"),
        ("HTTPS://T@h/x", "HTTPS://h/x"),
        ("ssh://u%3AT@h/x", "ssh://h/x"),
        ("git+ssh://git@h/x?ref=a?token", "git+ssh://git@h/x?ref=a?token"),
        ("git+https://git@h/x", "git+https://git@h/x"),
        ("git+ssh://ghp_T0123456789@h/x", "git+ssh://h/x"),
        ("git://T:T@h/x", "git://h/x"),
        ("https://h/x?", "https://h/x?"),
        (&format!("git+https://h/x{narrow}"), &format!("git+https://h/x{narrow}")),
        ("github:a/b/c", "github:a/b/c"),
        ("", ""),
    ] {
        assert_eq!(strip_secrets(url), stripped, "{url}");
        assert_eq!(strip_secrets(stripped), stripped, "a second time");
    }
}

#[test]
fn tells_urls_from_paths_and_names() {
    for url in ["https://h", "git+file:///x?y", "path:x"] {
        assert!(is_url(url), "{url}");
    }
    for text in ["", ":x", "/a:b?c", "main", "../x:y", "sha256-a=?", "1a:b", "feat/x:y"] {
        assert!(!is_url(text), "{text}");
    }
}
