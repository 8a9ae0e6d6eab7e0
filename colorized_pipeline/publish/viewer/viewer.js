"use strict";

// Addresses: #MANIFEST shows a folder's photos, #MANIFEST;NUMBER one of them. Manifests name the site's own address;
// the page takes the same files from where it lies itself, so it works on any static server, without a network.
const base = document.documentElement.dataset.base;
const element = (id) => document.getElementById(id);
const words = (map) => Object.values(map || {}).flat().join(" ");
const local = (url) => (url.startsWith(base) ? new URL(url.slice(base.length), document.baseURI).href : url);
const manifests = new Map();
let viewer = null;
let shown = null;

async function load(url) {
  if (!manifests.has(url)) {
    const answer = await fetch(url);
    if (!answer.ok) throw new Error(`${url}: ${answer.status} ${answer.statusText}`);
    manifests.set(url, await answer.json());
  }
  return manifests.get(url);
}

function show(name) {
  for (const id of ["folders", "photos", "photo"]) element(id).hidden = id !== name;
  element("statement").hidden = name === "photo";
  element("message").hidden = true;
  if (viewer && name !== "photo") {
    viewer.destroy();
    viewer = shown = null;
  }
}

function tell(text) {
  element("message").textContent = text;
  element("message").hidden = false;
}

function showPhotos(path, manifest) {
  show("photos");
  element("photos-title").textContent = words(manifest.label);
  element("manifest-link").href = path;
  element("thumbnails").replaceChildren(
    ...manifest.items.map((canvas, number) => {
      const item = document.createElement("li");
      const link = document.createElement("a");
      const image = document.createElement("img");
      link.href = `#${path};${number + 1}`;
      image.src = local(canvas.thumbnail[0].id);
      image.alt = "Grey photograph: ";
      image.loading = "lazy";
      link.append(image, words(canvas.label));
      item.append(link);
      return item;
    }),
  );
  element("photos-title").focus();
}

function showPhoto(path, manifest, number) {
  const canvas = manifest.items[number - 1];
  const body = canvas.items[0].items[0].body;
  const pictures = body.type === "Choice" ? body.items : [body];
  const statement = canvas.requiredStatement || manifest.requiredStatement;
  show("photo");
  element("photo-title").textContent = words(canvas.label);
  element("back").href = `#${path}`;
  element("photo-statement").textContent = `${words(statement.label)}: ${words(statement.value)}`;
  element("photo-summary").textContent = (canvas.summary.none || []).join(" ");
  element("label-link").href = local(canvas.seeAlso[0].id);
  for (const [id, target] of [["previous", number - 1], ["next", number + 1]]) {
    element(id).hidden = target < 1 || target > manifest.items.length;
    element(id).href = `#${path};${target}`;
  }
  const facts = [...(canvas.metadata || [])];
  if (canvas.rights) facts.push({ label: { en: ["Licence or rights statement"] }, value: { none: [canvas.rights] } });
  element("metadata").replaceChildren(
    ...facts.flatMap((fact) => {
      const [name, value] = [document.createElement("dt"), document.createElement("dd")];
      name.textContent = words(fact.label);
      value.textContent = words(fact.value);
      return [name, value];
    }),
  );
  element("choices").replaceChildren(
    element("choices").querySelector("legend"),
    ...pictures.map((picture, index) => {
      const [label, input] = [document.createElement("label"), document.createElement("input")];
      Object.assign(input, { type: "radio", name: "choice", checked: index === 0, value: String(index) });
      input.addEventListener("change", () => choose(canvas, pictures, index));
      label.append(input, " ", words(picture.label));
      return label;
    }),
  );
  openViewer();
  choose(canvas, pictures, 0);
  element("photo-title").focus();
}

function openViewer() {
  if (viewer) viewer.destroy();
  viewer = OpenSeadragon({
    element: element("picture"),
    drawer: "canvas",
    showNavigationControl: false,
    gestureSettingsMouse: { clickToZoom: false },
    animationTime: 0.4,
  });
  shown = new Map();
}

// Every picture of a photo is laid over the ones before, so place and zoom stay; all but the chosen are transparent.
async function choose(canvas, pictures, index) {
  const [opened, layers] = [viewer, shown];
  element("picture").setAttribute("aria-label", `${words(canvas.label)}. ${words(pictures[index].label)}`);
  if (!layers.has(index)) {
    layers.set(index, addPicture(opened, pictures[index]));
  }
  try {
    await layers.get(index);
  } catch (error) {
    tell(`This picture can't be shown: ${error.message}`);
  }
  const chosen = Number(element("choices").querySelector("input:checked").value);
  if (opened !== viewer) return;
  for (const [other, layer] of layers) {
    layer.then((item) => item.setOpacity(other === chosen ? 1 : 0), () => {});
  }
  element("picture").dataset.shown = String(chosen);
}

async function addPicture(opened, picture) {
  const service = (picture.service || [])[0];
  let source = { type: "image", url: local(picture.id) };
  if (service) {
    const id = local(service.id || service["@id"]);
    source = { ...(await load(`${id}/info.json`)), id };
  }
  return new Promise((resolve, reject) => {
    opened.addTiledImage({
      tileSource: source,
      width: 1,
      success: (event) => resolve(event.item),
      error: (event) => reject(new Error(event.message)),
    });
  });
}

async function go() {
  const [path, number] = location.hash.slice(1).split(";");
  if (!path) {
    show("folders");
    return;
  }
  try {
    const manifest = await load(new URL(path, document.baseURI).href);
    if (manifest.items[Number(number) - 1]) showPhoto(path, manifest, Number(number));
    else showPhotos(path, manifest);
  } catch (error) {
    show("folders");
    tell(`This folder can't be shown: ${error.message}`);
  }
}

element("zoom-in").addEventListener("click", () => viewer.viewport.zoomBy(1.5).applyConstraints());
element("zoom-out").addEventListener("click", () => viewer.viewport.zoomBy(1 / 1.5).applyConstraints());
element("whole").addEventListener("click", () => viewer.viewport.goHome());
element("controls").addEventListener("submit", (event) => event.preventDefault());
if (location.protocol === "file:") {
  tell("Browsers show this page only from a web server. In its folder run: python -m http.server 8000 "
    + "and open http://localhost:8000");
} else {
  addEventListener("hashchange", go);
  go();
}
