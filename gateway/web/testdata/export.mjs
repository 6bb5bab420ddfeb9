// Prints what a module exports: node export.mjs <file> <name>.
import {pathToFileURL} from "node:url";

const module = await import(pathToFileURL(process.argv[2]));
process.stdout.write(JSON.stringify(module[process.argv[3]]));
