// Keeps the page's files, so that it works without a network once it has been loaded; with one, newer files come first.
const FILES = ["./", "page.css", "compare.css", "page.js", "worker.js", "colorized.json", "read.onnx", "draw.onnx", "show.onnx",
  "ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"];

self.oninstall = (event) => event.waitUntil(caches.open("colorized").then((cache) => cache.addAll(FILES)));
self.onactivate = (event) => event.waitUntil(self.clients.claim());
self.onfetch = (event) => event.respondWith(
  fetch(event.request).catch(() => caches.match(event.request, { ignoreSearch: true })));
