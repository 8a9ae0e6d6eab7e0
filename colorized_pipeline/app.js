// What gradio's page lacks: every format, a slider between grey and colour, names of its buttons.

// gradio refuses files that the visitor's system doesn't call pictures, as many do with HEIC or JPEG 2000
const type = Object.getOwnPropertyDescriptor(Blob.prototype, "type");
Object.defineProperty(Blob.prototype, "type", {configurable: true, get() {
  const ours = this instanceof File && ENDINGS.some((ending) => this.name.toLowerCase().endsWith(ending));
  return ours && !type.get.call(this).startsWith("image/") ? "image/x-photo" : type.get.call(this);
}});
addEventListener("click", ({target}) => {
  if (target.type === "file") target.accept = ["image/*", ...ENDINGS].join();
}, true);

addEventListener("input", ({target}) =>  // for all pictures that follow, too
  target.closest(".compare") && document.documentElement.style.setProperty("--at", `${target.value}%`));
addEventListener("click", ({target}) => {
  if (!target.matches(".whole")) return;
  document.fullscreenElement ? document.exitFullscreen() : target.closest(".compare").requestFullscreen();
});

const name = (selector, words) => document.querySelectorAll(selector).forEach((item) => {
  const text = words(item)?.replace(/\s+/g, " ").trim();
  if (text && item.ariaLabel !== text) item.ariaLabel = text;
});
new MutationObserver(() => {
  name("button.gallery-item", (item) => `Example: ${item.querySelector("img")?.src.split("/").pop().split(".")[0]}`);
  name("button.thumbnail-item", (item) => item.innerText);
  name("button.upload-container", (item) => item.innerText);
}).observe(document, {childList: true, subtree: true});
if (!document.fullscreenEnabled) {  // iPhones
  document.head.append(Object.assign(document.createElement("style"), {textContent: ".whole { visibility: hidden }"}));
}
