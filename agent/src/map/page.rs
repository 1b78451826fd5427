//! The page's files, which are part of the binary.

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;

const MARKUP: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const PICTURE: &str = "image/svg+xml";

/// Path, type and text of each.
const FILES: [(&str, &str, &str); 10] = [
    ("/", MARKUP, include_str!("page/index.html")),
    ("/map.css", STYLE, include_str!("page/map.css")),
    ("/icon.svg", PICTURE, include_str!("page/icon.svg")),
    ("/main.js", SCRIPT, include_str!("page/main.js")),
    ("/model.js", SCRIPT, include_str!("page/model.js")),
    ("/words.js", SCRIPT, include_str!("page/words.js")),
    ("/drawing.js", SCRIPT, include_str!("page/drawing.js")),
    ("/table.js", SCRIPT, include_str!("page/table.js")),
    ("/health.js", SCRIPT, include_str!("page/health.js")),
    ("/dom.js", SCRIPT, include_str!("page/dom.js")),
];

pub(super) fn routes() -> Router {
    FILES.iter().fold(Router::new(), |router, &(path, kind, text)| {
        router.route(path, get(async move || ([(CONTENT_TYPE, kind)], text).into_response()))
    })
}
