// JupyterLab's own configuration for its tests, with the browser and the limits of this run.
const base = require('@jupyterlab/galata/lib/playwright-config');

const { env } = process;
module.exports = {
  ...base,
  testDir: env.KERNELBRIDGE_FOREIGN_TESTS,
  testMatch: ['**/*.test.ts', '**/*.spec.ts', '**/*.spec.js'],
  outputDir: env.KERNELBRIDGE_FOREIGN_OUTPUT,
  reporter: [['list'], ['json', { outputFile: env.KERNELBRIDGE_FOREIGN_RESULTS }]],
  workers: 1,
  retries: 0,
  // Pictures are of their fonts; what is in them is asked by the tests themselves.
  ignoreSnapshots: true,
  // Theirs are 60 and 5 seconds, for a kernel of the same machine.
  timeout: 240000,
  expect: { timeout: 30000 },
  use: {
    ...base.use,
    baseURL: env.TARGET_URL,
    video: 'off',
    trace: 'off',
    screenshot: 'only-on-failure',
    contextOptions: { permissions: ['clipboard-read', 'clipboard-write'] },
    launchOptions: {
      executablePath: env.KERNELBRIDGE_FOREIGN_CHROMIUM,
      args: env.KERNELBRIDGE_FOREIGN_FLAGS.split(' ')
    }
  }
};
