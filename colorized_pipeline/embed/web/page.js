// The page around the worker: a photo in, its picture with a slider, a labelled JPEG out. Nothing leaves this device.
const element = (id) => document.getElementById(id);
const buttons = (change) => document.querySelectorAll("button").forEach(change);
const status = (text) => (element("status").textContent = text);
const worker = new Worker(`worker.js${location.search}`, { type: "module" });
const facts = fetch("colorized.json").then((answer) => answer.json());
let photo, seed, last = Promise.resolve();

// RGBA pixels in colour, one photo after the other; `noise` instead of a seed's own is for comparisons with other programs
function colorize(pixels, seed, noise) {
  const ask = () => new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => (data.error ? reject(new Error(data.error)) : resolve(data.pixels));
    worker.onerror = (event) => reject(new Error(event.message || "the model can't be loaded"));
    worker.postMessage({ pixels, seed, noise });
  });
  return (last = last.then(ask, ask));
}
window.colorized = { colorize };

async function open(file) {
  if (!file) return;
  try {
    const bitmap = await createImageBitmap(file).catch(() => {
      throw new Error("this browser doesn't read it as a photo; give a JPEG, PNG or WebP file");
    });
    const canvas = element("before");
    [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    photo = { file, pixels: context.getImageData(0, 0, bitmap.width, bitmap.height) };
    canvas.style.filter = "grayscale(1)";
    document.documentElement.style.setProperty("--shape", bitmap.width / bitmap.height);
    await paint(0);
  } catch (error) {
    status(`${file.name} can't be colorized: ${error.message}`);
  }
}

async function paint(next) {
  status("Colorizing…");
  buttons((button) => (button.disabled = true));
  const [started, asked] = [performance.now(), photo];
  try {
    const painted = await colorize(asked.pixels, next);
    if (asked !== photo) return; // another one came meanwhile
    seed = next;
    const canvas = element("after");
    [canvas.width, canvas.height] = [painted.width, painted.height];
    canvas.getContext("2d").putImageData(painted, 0, 0);
    element("result").hidden = false;
    element("result").scrollIntoView({ block: "nearest" });
    status(`${photo.file.name} is ready, after ${((performance.now() - started) / 1000).toFixed(1)} seconds.`);
  } finally {
    buttons((button) => (button.disabled = false));
  }
}

async function save() {
  const blob = await new Promise((resolve) => element("after").toBlob(resolve, "image/jpeg", 0.95));
  const jpeg = new Uint8Array(await blob.arrayBuffer());
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(withXmp(jpeg, await label()), { type: "image/jpeg" }));
  link.download = photo.file.name.replace(/\.[^.]*$/, "") + "-colorized.jpg";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

async function label() {
  const content = await photo.file.arrayBuffer();
  const digest = crypto.subtle ? new Uint8Array(await crypto.subtle.digest("SHA-256", content)) : []; // needs https
  const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const texts = { NAME: encodeURIComponent(photo.file.name).replaceAll("'", "%27"), SHA256: hex, SEED: String(seed) };
  return Object.entries(texts).reduce((xmp, [name, text]) => xmp.replaceAll(`PHOTO_${name}`, text), (await facts).xmp);
}

// A JPEG's parts with an XMP segment after its first marker (XMP Specification Part 3, 1.1.3)
function withXmp(jpeg, xmp) {
  const text = new TextEncoder().encode(`http://ns.adobe.com/xap/1.0/\0${xmp}`);
  const head = [0xff, 0xe1, (text.length + 2) >> 8, (text.length + 2) & 255];
  return [jpeg.subarray(0, 2), new Uint8Array(head), text, jpeg.subarray(2)];
}

element("file").onchange = (event) => open(event.target.files[0]);
element("slider").oninput = ({ target }) => document.documentElement.style.setProperty("--at", `${target.value}%`);
element("again").onclick = () => paint(seed + 1).catch((error) => status(error.message));
element("save").onclick = save;
document.ondragover = (event) => (event.preventDefault(), element("drop").classList.add("over"));
document.ondragleave = () => element("drop").classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  element("drop").classList.remove("over");
  open(event.dataTransfer.files[0]);
};
worker.onmessage = ({ data }) => status(data.ready ? "Ready." : data.error);
if ("serviceWorker" in navigator) navigator.serviceWorker.register("offline.js");
