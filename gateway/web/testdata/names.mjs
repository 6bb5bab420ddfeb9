// Reads host names as the page does: node names.mjs <folder of modules> < hosts > subjects.
import {readFileSync} from "node:fs";
import {pathToFileURL} from "node:url";

const {subjectOf} = await import(pathToFileURL(`${process.argv[2]}/name.js`));
process.stdout.write(JSON.stringify(JSON.parse(readFileSync(0)).map(subjectOf)));
