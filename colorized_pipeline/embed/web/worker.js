// The three graphs by onnxruntime-web, as colorize.py uses them. "?webgpu" in the page's address draws on the GPU.
const gpu = new URLSearchParams(location.search).has("webgpu");
const STRIP_PIXELS = 2 ** 18;

async function load() {
  const ort = await import(gpu ? "./ort.webgpu.min.mjs" : "./ort.wasm.min.mjs");
  ort.env.wasm.wasmPaths = new URL("./", location.href).href;
  const facts = await fetch("colorized.json").then((answer) => answer.json());
  const onProcessor = { executionProviders: ["wasm"] };
  const fastest = { executionProviders: gpu ? ["webgpu", "wasm"] : ["wasm"] };
  // One after the other, as WebGPU refuses a second at the same time; "read" scales as WebGPU's runtime can't
  const read = await ort.InferenceSession.create("read.onnx", onProcessor);
  const draw = await ort.InferenceSession.create("draw.onnx", fastest);
  const show = await ort.InferenceSession.create("show.onnx", fastest);
  return { ort, facts, read, draw, show };
}

// Normal numbers from a seed: mulberry32 and Box-Muller
function makeNoise(seed, count) {
  let state = seed + 1;
  const uniform = () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (((mixed ^ (mixed >>> 14)) >>> 0) + 0.5) / 2 ** 32;
  };
  return Float32Array.from({ length: count }, () =>
    Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
}

async function colorize({ pixels, seed, noise }) {
  const { ort, facts, read, draw, show } = await loaded;
  const { width, height, data } = pixels;
  const rgb = new Uint8Array(width * height * 3);
  for (let i = 0, j = 0; i < data.length; i += 4) {
    rgb[j++] = data[i];
    rgb[j++] = data[i + 1];
    rgb[j++] = data[i + 2];
  }
  const shorter = facts.working_size;
  const pixel = Math.max(Math.min(height, width) / shorter, Math.max(height, width) / (16 * shorter));
  const size = [height, width].map((edge) => Math.max(1, Math.round(edge / pixel)));
  const { lightness, working } = await read.run({
    rgb: new ort.Tensor("uint8", rgb, [height, width, 3]),
    size: new ort.Tensor("int64", size.map(BigInt), [2]),
  });

  const shape = [...facts.noise, ...working.dims.slice(2).map((edge) => edge / facts.noise_cell)];
  const values = noise ?? makeNoise(seed, shape.reduce((a, b) => a * b));
  const { chroma } = await draw.run({ lightness: working, noise: new ort.Tensor("float32", values, shape) });

  const cell = [height / size[0], width / size[1]].map((edge) => edge * facts.chroma_cell);
  const painted = new ImageData(width, height);
  const most = Math.max(1, Math.floor(STRIP_PIXELS / width));
  for (let top = 0; top < height; top += most) {
    const rows = Math.min(most, height - top);
    const strip = lightness.data.subarray(top * width, (top + rows) * width);
    const shown = await show.run({
      lightness: new ort.Tensor("float32", strip, [1, rows, width]),
      chroma,
      cell: new ort.Tensor("float32", cell, [2]),
      top: new ort.Tensor("int64", [BigInt(top)], []),
    });
    for (let i = top * width * 4, j = 0; j < shown.rgb.data.length; i += 4, j += 3) {
      painted.data.set(shown.rgb.data.subarray(j, j + 3), i);
      painted.data[i + 3] = 255;
    }
  }
  return painted;
}

const loaded = load();
loaded.then(() => postMessage({ ready: true }), (error) => postMessage({ error: `The model can't be loaded: ${error}` }));
onmessage = ({ data }) =>
  colorize(data).then((pixels) => postMessage({ pixels }), (error) => postMessage({ error: String(error) }));
