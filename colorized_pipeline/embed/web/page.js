// The page around the worker: a photo in, its picture with a slider, a labelled JPEG out. Nothing leaves this device.
const element = (id) => document.getElementById(id);
const buttons = (change) => document.querySelectorAll("button").forEach(change);
const status = (text) => (element("status").textContent = text);
const worker = new Worker(`worker.js${location.search}`, { type: "module" });
const facts = fetch("colorized.json").then((answer) => answer.json());
let asked, shown, last = Promise.resolve(); // the photo asked for last, and the one that is seen: file, pixels and seed

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

async function paint(photo) {
  const started = performance.now();
  asked = photo;
  element("result").hidden = photo.file !== shown?.file;
  status("Colorizing…");
  buttons((button) => (button.disabled = true));
  try {
    photo.pixels ??= await read(photo.file);
    const painted = await colorize(photo.pixels, photo.seed);
    if (asked !== photo) return; // another one came meanwhile
    put("before", photo.pixels);
    put("after", painted);
    shown = photo;
    document.documentElement.style.setProperty("--shape", painted.width / painted.height);
    element("result").hidden = false;
    element("result").scrollIntoView({ block: "nearest" });
    status(`${photo.file.name} is ready, after ${((performance.now() - started) / 1000).toFixed(1)} seconds.`);
  } catch (error) {
    if (asked === photo) status(`${photo.file.name} can't be colorized: ${error.message}`);
  } finally {
    if (asked === photo) buttons((button) => (button.disabled = false));
  }
}

async function read(file) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error("this browser doesn't read it as a photo; give a JPEG, PNG or WebP file");
  });
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

function put(name, pixels) {
  const canvas = element(name);
  [canvas.width, canvas.height] = [pixels.width, pixels.height];
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

async function save() {
  const photo = shown;
  const blob = await new Promise((resolve) => element("after").toBlob(resolve, "image/jpeg", 0.95));
  const jpeg = new Uint8Array(await blob.arrayBuffer());
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(withXmp(jpeg, await label(photo)), { type: "image/jpeg" }));
  link.download = photo.file.name.replace(/\.[^.]*$/, "") + "-colorized.jpg";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

async function label({ file, seed }) {
  const content = await file.arrayBuffer();
  const digest = crypto.subtle ? new Uint8Array(await crypto.subtle.digest("SHA-256", content)) : []; // needs https
  const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const texts = { NAME: encodeURIComponent(file.name).replaceAll("'", "%27"), SHA256: hex, SEED: String(seed) };
  return Object.entries(texts).reduce((xmp, [name, text]) => xmp.replaceAll(`PHOTO_${name}`, text), (await facts).xmp);
}

// A JPEG's parts with an XMP segment after its first marker (XMP Specification Part 3, 1.1.3)
function withXmp(jpeg, xmp) {
  const text = new TextEncoder().encode(`http://ns.adobe.com/xap/1.0/\0${xmp}`);
  const head = [0xff, 0xe1, (text.length + 2) >> 8, (text.length + 2) & 255];
  return [jpeg.subarray(0, 2), new Uint8Array(head), text, jpeg.subarray(2)];
}

const open = (file) => file && paint({ file, seed: 0 });
element("file").onchange = (event) => open(event.target.files[0]);
element("slider").oninput = ({ target }) => document.documentElement.style.setProperty("--at", `${target.value}%`);
element("again").onclick = () => paint({ ...shown, seed: shown.seed + 1 });
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
