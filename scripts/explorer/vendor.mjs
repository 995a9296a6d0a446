// Builds cnnfilterdb/explore/static/vendor: the libraries of the explorer as two modules, and their licences.
//   npm ci --ignore-scripts && npm run vendor
// package-lock.json holds the exact versions and the hashes of what they are built from.
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const target = new URL("../../cnnfilterdb/explore/static/vendor/", import.meta.url).pathname;
rmSync(target, { recursive: true, force: true });

const found = await build({
  entryPoints: ["entries/charts.js", "entries/editor.js"],
  outdir: target,
  bundle: true,
  format: "esm",
  legalComments: "none",
  metafile: true,
  minify: true,
  define: { "process.env.NODE_ENV": '"production"' },
  target: "es2022",
});

// The licence of every package that a bundle contains, with the notices that some ask to keep.
const packages = new Set();
for (const path of Object.keys(found.metafile.inputs)) {
  const match = path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)\//);
  if (match) packages.add(match[1]);
}
const parts = [];
for (const name of [...packages].sort()) {
  const folder = `node_modules/${name}`;
  const { version, license } = JSON.parse(readFileSync(`${folder}/package.json`, "utf8"));
  parts.push(`${"=".repeat(100)}\n${name} ${version} (${license})\n${"=".repeat(100)}\n`);
  const texts = readdirSync(folder).filter((file) => /^(licen[cs]e|notice|copyright)/i.test(file));
  if (!texts.some((file) => /^(licen[cs]e|copyright)/i.test(file))) throw new Error(`${name}: no licence text`);
  for (const file of texts) {
    const nested = statSync(`${folder}/${file}`).isDirectory() ? readdirSync(`${folder}/${file}`) : [""];
    for (const one of nested) parts.push(readFileSync(`${folder}/${file}/${one}`.replace(/\/$/, ""), "utf8").trim() + "\n");
  }
}
writeFileSync(`${target}LICENSES.txt`, parts.join("\n"));
