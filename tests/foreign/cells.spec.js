// Runs a notebook cell by cell and writes what each cell shows: tags, classes, text. Copied beside the suite's own tests.
const { test } = require('@jupyterlab/galata');
const fs = require('fs');
const path = require('path');

const { KERNELBRIDGE_FOREIGN_SHOWN: target, KERNELBRIDGE_FOREIGN_NOTEBOOK: notebook } = process.env;

// No ids, no sizes: those differ from one run to the next.
const shown = output =>
  output.evaluate(top => {
    const lines = [];
    const walk = (node, depth) => {
      if (node.nodeType === Node.TEXT_NODE) {
        if (node.textContent.trim()) lines.push(' '.repeat(depth) + JSON.stringify(node.textContent.trim()));
        return;
      }
      if (node.nodeType !== Node.ELEMENT_NODE) return;
      const classes = [...node.classList].filter(name => !/[0-9a-f]{8,}/.test(name)).sort();
      const value = node.value === undefined ? '' : `=${JSON.stringify(String(node.value))}`;
      lines.push(' '.repeat(depth) + [node.localName, ...classes].join('.') + value);
      node.childNodes.forEach(child => walk(child, depth + 1));
    };
    walk(top, 0);
    return lines.join('\n');
  });

test('each cell', async ({ page, tmpPath }) => {
  test.setTimeout(900000);
  await page.contents.uploadDirectory(path.dirname(notebook), tmpPath);
  await page.filebrowser.openDirectory(tmpPath);
  const name = path.basename(notebook);
  await page.notebook.openByPath(`${tmpPath}/${name}`);
  await page.notebook.activate(name);
  const cells = [];
  await page.notebook.runCellByCell({
    onAfterCellRun: async index => {
      const output = await page.notebook.getCellOutputLocator(index);
      let last = output ? await shown(output) : '';
      // Widgets draw themselves in several steps.
      for (let tries = 0, same = 0; output && tries < 40 && same < 3; tries++) {
        await page.waitForTimeout(250);
        const now = await shown(output);
        same = now === last ? same + 1 : 0;
        last = now;
      }
      cells[index] = last;
    }
  });
  fs.writeFileSync(target, JSON.stringify(Array.from(cells, one => one ?? '')));
});
