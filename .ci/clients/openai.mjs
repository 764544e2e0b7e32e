// OpenAI's client of npm with a server of the embedded model. Usage: node openai.mjs URL
import OpenAI, { toFile } from 'openai';

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: 'none', maxRetries: 0 });
const options = { model: 'emoji-ldm', prompt: 'a fox on a blue background', seed: 7, steps: 8 };
const [first, again] = [await client.images.generate(options), await client.images.generate(options)];
if (first.data[0].b64_json !== again.data[0].b64_json) throw new Error('the same seed made another picture');
const image = await toFile(Buffer.from(first.data[0].b64_json, 'base64'), 'fox.png', { type: 'image/png' });
const edited = await client.images.edit({ image, prompt: 'a frog', steps: 8 });
if (!edited.data[0].b64_json) throw new Error('no picture');
const kinds = [];
const stream = await client.images.generate({ ...options, steps: 300, stream: true, partial_images: 1 });
for await (const event of stream) kinds.push(event.type);
if (kinds.at(-1) !== 'image_generation.completed') throw new Error(kinds.join());
console.log('openai for node: generate, edit, stream', kinds.join(' '));
